"""Training a network of `torch_networks`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import torchnorm
from parity_tests.models.tasks import Task
from parity_tests.models.torch_networks import Model
from parity_tests.models.training import LAST, STEPS


def trial(model: Model, seed: int, rate: float, ours: bool, skip: Any = (), **rule: Any) -> float:
    """The loss in the end; see `training`.

    Args:
        model: with a task.
        seed: of the initial parameters, the batches and dropout.
        rate: of AdamW.
        ours: whether in neuron coordinates.
        skip: layers to leave alone.
        rule: fields of `torchnorm.Rule` that are not the defaults.
    """
    assert model.task is not None
    torch.manual_seed(seed)
    module = model.build().float().train()
    rng = np.random.default_rng(seed)
    inputs, _ = batch(model.task, rng)
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=rate)
    if ours:
        torchnorm.convert(module, inputs, rule=torchnorm.Rule(**rule), skip=skip)
        torchnorm.optim.in_neuron_coordinates(optimizer, module)
    torch.manual_seed(seed)
    losses = []
    for _ in range(STEPS):
        inputs, target = batch(model.task, rng)
        optimizer.zero_grad()
        loss = loss_of(model.task.loss, call(module, inputs), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return float(np.mean(losses[-LAST:]))


def call(module: nn.Module, inputs: Any) -> torch.Tensor:
    """The first tensor of what a network returns."""
    out = module(**inputs) if isinstance(inputs, dict) else module(*inputs)
    while not isinstance(out, torch.Tensor):
        out = next(iter(out.values() if isinstance(out, dict) else out))
    return out


def batch(task: Task, rng: np.random.Generator) -> tuple[Any, torch.Tensor]:
    """A batch as tensors: float32, integers as they are."""
    inputs, target = task.sample(rng, task.count)
    if isinstance(inputs, dict):
        return {name: _tensor(each) for name, each in inputs.items()}, _tensor(target)
    return tuple(map(_tensor, inputs)), _tensor(target)


def _tensor(array: np.ndarray) -> torch.Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.float() if tensor.is_floating_point() else tensor


def loss_of(name: str, out: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """One of `tasks.LOSSES`; channels are the second axis of images, the last of all others."""
    if name == "itself":
        return out.mean()
    if name == "squares":
        return ((out - target) ** 2).mean()
    if out.ndim < 4:
        out = out.movedim(-1, 1)
    if name == "next token":
        return F.cross_entropy(out[..., :-1], target[:, 1:])
    if name == "classes":
        out = out.flatten(2).mean(2) if out.ndim > 2 else out
    return F.cross_entropy(out, target)
