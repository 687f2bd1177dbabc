"""`in_neuron_coordinates` on two processes is that of one with the whole batch: DDP, FSDP2."""

import subprocess
import sys

import pytest
import torch

from parity_tests.tolerances import LOCK_STEP, VISIBLE
from torchnorm import Rule
from torchnorm.tests.optim import two_processes as processes
from torchnorm.tests.optim.nets import error, same
from torchnorm.tests.test_distributed import ENVIRONMENT, ROOT
from torchnorm.tests.two_processes import batch, convnet, mlp

#: Sums in another order, a few steps of an optimizer that divides by roots of squares.


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each of two processes has computed, by name."""
    path = tmp_path_factory.mktemp("torchrun") / "results.pt"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*torchrun, "-m", "torchnorm.tests.optim.two_processes", str(path)],
        cwd=ROOT,
        env=ENVIRONMENT,
        timeout=240,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [torch.load(f"{path}.{rank}") for rank in range(2)]


def one_process(model, times=1):
    """The parameters that one process reaches on the whole batch."""
    optimizer = processes.coordinates(model)
    for _ in range(times):
        found = processes.train(model, optimizer, [batch()])
    return [p.detach() for p in found]


def test_all_processes_have_the_same_parameters(results):
    assert results[0].keys() == results[1].keys()
    for name, expected in results[0].items():
        if name not in ("a group of one", "eval mode"):
            assert same(results[1][name], expected), name
    assert not same(results[0]["a group of one"], results[1]["a group of one"])


@pytest.mark.parametrize("rule", processes.RULES)
def test_ddp_is_the_whole_batch(results, rule):
    """Over all processes without being told, as SyncBatchNorm."""
    expected = one_process(convnet(rule=processes.RULES[rule]))
    assert error(results[0][rule], expected) <= LOCK_STEP


@pytest.mark.parametrize("name", ["wrapped first", "micro-batches", "empty share"])
def test_other_ways_of_ddp(results, name):
    expected = one_process(convnet(rule=Rule()))
    assert error(results[0][name], expected) <= LOCK_STEP
    assert error(results[0]["a group of one"], expected) > VISIBLE


@pytest.mark.parametrize("name", ["fsdp", "fsdp, unsharded between"])
def test_fully_sharded_parameters(results, name):
    """And through a state_dict in the middle."""
    expected = one_process(mlp(rule=Rule(decay=0.6)), times=2)
    assert error(results[0][name], expected) <= LOCK_STEP


def test_eval_mode_is_told_in_every_process(results):
    for each in results:
        assert "neuron_stats: got none for '0' since the last step" in each["eval mode"]
