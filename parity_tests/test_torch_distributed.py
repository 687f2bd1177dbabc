"""Two processes that share their sums are one process with the whole batch."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch.nn.parallel import DistributedDataParallel

import torchnorm
from parity_tests.tolerances import GATE, VISIBLE, slice_error

RULES = ["Rule()", "Rule(weighting='error')", "Rule(weighting='uniform')", "Rule(scale='none')"]
SPLIT = 20  # of 48 rows: the shards need not be equal


def batch():
    """Inputs and a cotangent of the whole batch."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(48, 3)) * [1, 10, 0.1] + [0, 30, 1]
    return torch.tensor(x), torch.tensor(rng.normal(size=(48, 4)))


def model(process_group, rule):
    """A layer, the same in every process."""
    torch.manual_seed(0)
    layer = torchnorm.Linear(3, 4, gate="gelu", rule=rule, dtype=torch.float64)
    layer.process_group = process_group
    return layer


def gradient(layer, x, g_z):
    """Gradients of sum(z g_z)."""
    layer(x).backward(g_z)
    return [p.grad.clone() for p in layer.parameters()]


def worker(rank, folder, names):
    """What each process does; the first one writes the results."""
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    x, g_z = batch()
    mine = slice(None, SPLIT) if rank == 0 else slice(SPLIT, None)
    results = {}
    for name in names:
        rule = eval(f"torchnorm.{name}")
        for group in (None, dist.group.WORLD):
            layer = model(group, rule)
            parallel = DistributedDataParallel(layer)
            parallel(x[mine]).backward(g_z[mine])
            # DDP averages over the processes; the loss here is a sum.
            results[name, group is None] = [2 * p.grad for p in layer.parameters()]
    if rank == 0:
        torch.save(results, Path(folder) / "results.pt")
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
def test_ddp_with_a_process_group_is_the_whole_batch():
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(worker, (folder, RULES), nprocs=2)
        results = torch.load(Path(folder) / "results.pt")
    x, g_z = batch()
    for name in RULES:
        expected = gradient(model(None, eval(f"torchnorm.{name}")), x, g_z)
        for got, e in zip(results[name, False], expected, strict=True):
            assert slice_error(got, e, axes=(0,) if e.ndim > 1 else ()) <= GATE["float64"]
        assert slice_error(results[name, True][0], expected[0]) > VISIBLE  # local statistics


@pytest.mark.filterwarnings("ignore")
def test_too_few_rows_are_told_in_a_group_of_one_too(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        x, _ = batch()
        layer = model(dist.group.WORLD, torchnorm.Rule())
        with pytest.raises(ValueError, match="got 1 sample, expected at least 2"):
            layer(x[:1]).sum().backward()
    finally:
        dist.destroy_process_group()
