"""One of the processes of test_distributed.py: trains on its share of the batch.

torchrun --nproc_per_node=2 -m torchnorm.tests.optim.two_processes RESULT
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from torchnorm import Rule
from torchnorm.optim import in_neuron_coordinates
from torchnorm.tests.two_processes import ALL, MICRO, UNEQUAL, batch, convnet, mlp, share, whole

STEPS, RATE = 3, 0.01
RULES = {"gate": Rule(), "decay": Rule(decay=0.6), "error": Rule(weighting="error", decay=0.3)}
ADAMW: dict[str, Any] = {"lr": RATE, "weight_decay": 0.1}


def coordinates(model: nn.Module, **kwargs: Any) -> torch.optim.Optimizer:
    """AdamW in neuron coordinates, on parameters that are sharded already, if they are."""
    return in_neuron_coordinates(torch.optim.AdamW(model.parameters(), **ADAMW), model, **kwargs)


def train(
    model: nn.Module, optimizer: Any, parts: list[Any], *, processes: int = 1
) -> list[torch.Tensor]:
    """Parameters after a few steps, each on the sum over micro-batches."""
    for _ in range(STEPS):
        optimizer.zero_grad()
        for part in parts:
            (processes * share(model(part[0]), part[1])).backward()
        optimizer.step()
    return list(model.parameters())


def runs(rank: int) -> dict[str, Callable[[], list[torch.Tensor]]]:
    """What is compared with one process, by name."""
    x, y = batch()
    alone, _ = dist.new_subgroups(1)

    def mine(first: int = UNEQUAL) -> list[Any]:
        rows = slice(None, first) if rank == 0 else slice(first, None)
        return [(x[rows], y[rows])]

    def ddp(rule: Rule, first: int = UNEQUAL, **kwargs: Any) -> list[torch.Tensor]:
        model = DistributedDataParallel(convnet(rule=rule))
        return train(model, coordinates(model, **kwargs), mine(first), processes=2)

    def ddp_last() -> list[torch.Tensor]:
        model = convnet(rule=Rule())
        optimizer = coordinates(model)  # before DDP, which broadcasts buffers from one process
        return train(DistributedDataParallel(model), optimizer, mine(), processes=2)

    def micro() -> list[torch.Tensor]:
        model = DistributedDataParallel(convnet(rule=Rule()))
        ((own_x, own_y),) = mine()
        parts = [(own_x[:MICRO], own_y[:MICRO]), (own_x[MICRO:], own_y[MICRO:])]
        return train(model, coordinates(model), parts, processes=2)

    def fsdp(rule: Rule, **kwargs: Any) -> list[torch.Tensor]:
        model = mlp(rule=rule)
        for layer in model.children():
            if list(layer.parameters()):
                fully_shard(layer, **kwargs)
        fully_shard(model, **kwargs)
        optimizer = coordinates(model)
        train(model, optimizer, mine(), processes=2)
        optimizer.load_state_dict(optimizer.state_dict())
        return train(model, optimizer, mine(), processes=2)

    return {
        **{name: lambda r=rule: ddp(r) for name, rule in RULES.items()},
        "wrapped first": ddp_last,
        "micro-batches": micro,
        "empty share": lambda: ddp(Rule(), ALL),
        "a group of one": lambda: ddp(Rule(), process_group=alone),
        "fsdp": lambda: fsdp(Rule(decay=0.6)),
        "fsdp, unsharded between": lambda: fsdp(Rule(decay=0.6), reshard_after_forward=False),
    }


def evaluated() -> str:
    """The error of a model that was left in eval mode."""
    model = DistributedDataParallel(convnet(rule=Rule()))
    optimizer = coordinates(model)
    x, y = batch()
    share(model.train()(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()
    share(model.eval()(x), y).backward()
    try:
        optimizer.step()
    except ValueError as error:
        return str(error)
    return ""


def main(result: str) -> None:
    """What each process does; the results of both are written."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    rank = dist.get_rank()
    trained: dict[str, Any] = {name: whole(run()) for name, run in runs(rank).items()}
    trained["eval mode"] = evaluated()
    torch.save(trained, f"{result}.{rank}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
