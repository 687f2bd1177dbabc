"""One of the processes of test_distributed.py: trains on its share of the batch.

    torchrun --nproc_per_node=2 -m torchnorm.tests.two_processes RESULT

With "dies" in place of RESULT the last process kills itself after the first step.
"""

from __future__ import annotations

import copy
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import torchnorm
from torchnorm import Rule

STEPS, RATE = 3, 0.05
ROWS = 48
#: How long a process waits for the others, in seconds.
TIMEOUT = 8

PRECONDITIONED = Rule(gradient="preconditioned")
RULES = {
    "gate": PRECONDITIONED,
    "error": replace(PRECONDITIONED, weighting="error"),
    "uniform": replace(PRECONDITIONED, weighting="uniform"),
    "centered": replace(PRECONDITIONED, scale="none"),
}
#: Which rows of the batch are the first process' own; the other has the rest.
UNEQUAL, ALL = 20, ROWS
#: Rows of the first of two micro-batches, of each process.
MICRO = 8


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Images of unlike channels, and targets."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, 2, 6, 6)) * [[[1]], [[4]]] + [[[0]], [[3]]]
    return torch.tensor(x), torch.tensor(rng.normal(size=(ROWS, 4)))


def convnet(process_group: Any = None, rule: Rule = PRECONDITIONED) -> nn.Module:
    """A convolution and a dense layer, with bias, ReLU and GELU; the same in every process."""
    torch.manual_seed(0)
    kwargs: dict[str, Any] = {"dtype": torch.float64, "process_group": process_group, "rule": rule}
    return nn.Sequential(
        torchnorm.Conv2d(2, 4, 3, stride=2, padding=1, gate="relu", **kwargs),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        torchnorm.Linear(36, 4, gate="gelu", **kwargs),
        nn.GELU(),
    )


def mlp(process_group: Any = None, rule: Rule = PRECONDITIONED) -> nn.Module:
    """Two dense layers on the same images."""
    torch.manual_seed(0)
    kwargs: dict[str, Any] = {"dtype": torch.float64, "process_group": process_group, "rule": rule}
    return nn.Sequential(
        nn.Flatten(),
        torchnorm.Linear(72, 8, gate="gelu", **kwargs),
        nn.GELU(),
        torchnorm.Linear(8, 4, gate=None, **kwargs),
    )


def normalized(process_group: Any = None) -> nn.Module:
    """A BatchNorm of each convention between plain layers."""
    torch.manual_seed(0)
    kwargs: dict[str, Any] = {"dtype": torch.float64, "process_group": process_group}
    norm = torchnorm.normalizers.BatchNorm
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, dtype=torch.float64),
        norm(4, **kwargs),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 4, dtype=torch.float64),
        norm(4, convention="flax", momentum=None, **kwargs),
    )


def gated(process_group: Any = None) -> nn.Module:
    """The same with normalizers of several components."""
    model: Any = normalized(process_group)
    kwargs: dict[str, Any] = {"dtype": torch.float64, "process_group": process_group}
    model[1] = torchnorm.normalizers.ModeNorm(4, **kwargs)
    model[5] = torchnorm.normalizers.MixtureNorm(4, **kwargs)
    for parameter in model[1].parameters():  # a gate that begins at 0 all but stays there
        nn.init.normal_(parameter)
    return model


def share(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """What some rows add to the mean loss of the whole batch."""
    return ((x - y) ** 2).sum() / ROWS


def train(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, *, processes: int = 1
) -> list[torch.Tensor]:
    """Parameters after a few steps; DDP and FSDP average over the processes what is to be added."""
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for _ in range(STEPS):
        optimizer.zero_grad()
        (processes * share(model(x), y)).backward()
        optimizer.step()
    return list(model.parameters())


def accumulate(model: nn.Module, parts: list[Any], processes: int = 1) -> list[torch.Tensor]:
    """The sum of the gradients of micro-batches; they travel with the last one only."""
    for part in parts[:-1]:
        with model.no_sync() if isinstance(model, DistributedDataParallel) else _nothing():
            (processes * share(model(part[0]), part[1])).backward()
    (processes * share(model(parts[-1][0]), parts[-1][1])).backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


def _nothing() -> Any:
    return torch.enable_grad()


def whole(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """FSDP's shards put together."""
    return [getattr(t, "full_tensor", lambda t=t: t)().detach().clone() for t in tensors]


def runs(rank: int) -> dict[str, Callable[[], list[torch.Tensor]]]:
    """What is compared with one process, by name."""
    x, y = batch()
    world: Any = dist.group.WORLD
    alone, _ = dist.new_subgroups(1)

    def mine(first: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows = slice(None, first) if rank == 0 else slice(first, None)
        return x[rows], y[rows]

    def ddp(model: nn.Module, first: int = UNEQUAL) -> list[torch.Tensor]:
        return train(DistributedDataParallel(model), *mine(first), processes=2)

    def fsdp(model: nn.Module) -> list[torch.Tensor]:
        for layer in model.children():
            if list(layer.parameters()):
                fully_shard(layer)
        fully_shard(model)
        return train(model, *mine(UNEQUAL), processes=2)

    def synchronized(first: int, make: Callable[..., nn.Module] = normalized) -> Any:
        model = make(world)
        return [*ddp(model, first), *model.buffers()]

    def no_sync() -> list[torch.Tensor]:
        own = mine(UNEQUAL)
        parts = [[a[:MICRO] for a in own], [a[MICRO:] for a in own]]
        return accumulate(DistributedDataParallel(convnet(world)), parts, processes=2)

    return {
        **{name: lambda r=rule: ddp(convnet(world, r)) for name, rule in RULES.items()},
        "local": lambda: ddp(convnet()),
        "subgroup of one": lambda: ddp(convnet(alone)),
        "mlp": lambda: ddp(mlp(world)),
        "fsdp": lambda: fsdp(mlp(world)),
        "fsdp local": lambda: fsdp(mlp()),
        "empty share": lambda: ddp(convnet(world), ALL),
        "empty share, error": lambda: ddp(convnet(world, RULES["error"]), ALL),
        "no_sync": no_sync,
        "batch norm": lambda: synchronized(UNEQUAL),
        "batch norm, empty share": lambda: synchronized(ALL),
        "gated": lambda: synchronized(UNEQUAL, gated),
        "gated, empty share": lambda: synchronized(ALL, gated),
    }


def main(result: str) -> None:
    """What each process does; the first writes the results."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=TIMEOUT if result == "dies" else 60))
    rank = dist.get_rank()
    x, y = batch()
    if result == "dies":
        model = DistributedDataParallel(convnet(dist.group.WORLD))
        for step in range(1000):
            share(model(x), y).backward()
            print("step", step, flush=True)
            if rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
    trained = {name: whole(run()) for name, run in runs(rank).items()}
    if rank == 0:
        torch.save(copy.deepcopy(trained), result)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
