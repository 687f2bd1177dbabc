"""Processes that share their sums are one process with the whole batch: DDP, FSDP2, no_sync.

DDP and FSDP average over the processes what has to be added, so the loss of each process is its
share of the whole batch's mean (not the mean of its own rows, unless all have as many), times the
number of processes. The statistics do not depend on that factor, as long as it is the same
everywhere.
"""

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import torchnorm
from parity_tests.tolerances import (
    GATE,
    LOW_PRECISION_FACTOR,
    ROUNDING,
    TRAINING_GROWTH,
    VISIBLE,
    slice_error,
)
from torchnorm.functional import neuronwise_linear
from torchnorm.tests import two_processes as processes

ROOT = Path(__file__).parents[2]
SCRIPT = "torchnorm.tests.two_processes"
#: One thread each: two processes share the machine.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def error(actual, expected):
    """The worst over all tensors, per neuron; a bias vector is one slice."""
    pairs = zip(actual, expected, strict=True)
    return max(
        slice_error(a.detach(), e.detach(), axes=(0,) if e.ndim > 1 else ()) for a, e in pairs
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What two processes have computed, by name; see `two_processes_torch.runs`."""
    path = tmp_path_factory.mktemp("torchrun") / "results.pt"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*torchrun, "-m", SCRIPT, str(path)],
        cwd=ROOT,
        env=ENVIRONMENT,
        timeout=120,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return torch.load(path)


def one_process(make, rule=processes.PRECONDITIONED):
    """The parameters that one process reaches on the whole batch."""
    return processes.train(make(rule=rule), *processes.batch())


@pytest.mark.parametrize("rule", processes.RULES)
def test_ddp_with_a_process_group_is_the_whole_batch(results, rule):
    expected = one_process(processes.convnet, processes.RULES[rule])
    gate = processes.STEPS * TRAINING_GROWTH * GATE["float64"]
    assert error(results[rule], expected) <= gate


@pytest.mark.parametrize("name", ["mlp", "fsdp"])
def test_ddp_and_fully_sharded_parameters(results, name):
    gate = processes.STEPS * TRAINING_GROWTH * GATE["float64"]
    assert error(results[name], one_process(processes.mlp)) <= gate


@pytest.mark.parametrize(("name", "make"), [("local", "convnet"), ("fsdp local", "mlp")])
def test_without_a_process_group_the_statistics_are_local(results, name, make):
    assert error(results[name], one_process(getattr(processes, make))) > VISIBLE


def test_a_group_of_one_is_no_group(results):
    assert all(map(torch.equal, results["subgroup of one"], results["local"]))


@pytest.mark.parametrize("rule", ["gate", "error"])
def test_a_process_may_have_no_rows(results, rule):
    """The last batch of an uneven data set: run the model on zero rows, and all stay in step.

    `torch.distributed.algorithms.Join` shadows DDP's collectives only, not those of the statistics.
    """
    name = "empty share" if rule == "gate" else "empty share, error"
    expected = one_process(processes.convnet, processes.RULES[rule])
    assert error(results[name], expected) <= processes.STEPS * TRAINING_GROWTH * GATE["float64"]


@pytest.mark.parametrize("share", ["", ", empty share"])
@pytest.mark.parametrize("kind", ["batch norm", "gated"])
def test_synchronized_normalizers_are_those_of_the_whole_batch(results, kind, share):
    """Weights and running statistics, of processes with different numbers of rows."""
    model = processes.normalized() if kind == "batch norm" else processes.gated()
    name = kind + share
    expected = [*processes.train(model, *processes.batch()), *model.buffers()]
    assert error(results[name], expected) <= processes.STEPS * TRAINING_GROWTH * GATE["float64"]


def test_no_sync_adds_micro_batches_of_all_processes(results):
    """Each micro-batch has the statistics of what all processes had in it."""
    x, y = processes.batch()
    split, micro = processes.UNEQUAL, processes.MICRO
    first = [*range(micro), *range(split, split + micro)]
    rest = [*range(micro, split), *range(split + micro, processes.ROWS)]
    parts = [(x[rows], y[rows]) for rows in (first, rest)]
    expected = processes.accumulate(processes.convnet(), parts)
    assert error(results["no_sync"], expected) <= GATE["float64"]
    whole = processes.accumulate(processes.convnet(), [(x, y)])
    assert error(results["no_sync"], whole) > VISIBLE  # documented: not the whole batch's


def test_a_process_that_dies_ends_the_others(tmp_path):
    """With gloo's error, at once where it sees a closed connection, else after its timeout."""
    with contextlib.closing(socket.socket()) as sought:
        sought.bind(("127.0.0.1", 0))
        port = sought.getsockname()[1]
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    logs = [tmp_path / f"{rank}.log" for rank in range(2)]
    running = []
    for rank, log in enumerate(logs):
        with log.open("w") as out:
            running.append(
                subprocess.Popen(
                    [sys.executable, "-m", SCRIPT, "dies"],
                    cwd=ROOT,
                    env=ENVIRONMENT | where | {"RANK": str(rank)},
                    stdout=out,
                    stderr=subprocess.STDOUT,
                )
            )
    end = time.monotonic() + 60
    try:
        codes = [process.wait(max(end - time.monotonic(), 0)) for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    text = logs[0].read_text()
    assert "step 0" in text
    assert codes[1] == -9, logs[1].read_text()
    assert codes[0] not in (0, -9)  # it ended by itself, with an error
    assert re.search("Connection (closed|reset) by peer|Timed out", text), text


@pytest.fixture
def world_of_one(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
def test_a_world_of_one(world_of_one):
    x, y = processes.batch()
    alone = processes.train(processes.convnet(world_of_one), x, y)
    assert all(map(torch.equal, alone, processes.train(processes.convnet(), x, y)))
    kwargs = {"rule": processes.PRECONDITIONED, "process_group": world_of_one}
    layer = torchnorm.Linear(3, 4, gate="gelu", **kwargs)
    with pytest.raises(ValueError, match="got 1 sample, expected at least 2"):
        layer(torch.ones(1, 3)).sum().backward()


@pytest.mark.filterwarnings("ignore")
def test_sums_of_float16_do_not_overflow(world_of_one):
    """The sums over all processes are in float32, whatever the layer's dtype."""
    x = torch.full((64, 3), 3000.0) + torch.arange(64.0)[:, None] * torch.tensor([4.0, 8.0, 16.0])
    assert x.sum(0).max() > torch.finfo(torch.float16).max
    gradients = []
    for dtype in (torch.float16, torch.float32):
        weight = torch.zeros(4, 3, dtype=dtype, requires_grad=True)
        bias = torch.zeros(4, dtype=dtype, requires_grad=True)
        z = neuronwise_linear(x.to(dtype), weight, bias, gate="gelu", process_group=world_of_one)
        z.backward(torch.eye(4, dtype=dtype).repeat(16, 1))
        gradients.append(weight.grad.float())
    half, single = gradients
    assert torch.isfinite(half).all()
    # x is exact; x - c and the gradient are rounded once each.
    assert slice_error(half, single, axes=(0,)) <= LOW_PRECISION_FACTOR * ROUNDING["float16"]
