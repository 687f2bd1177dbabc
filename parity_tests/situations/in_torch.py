"""A situation in PyTorch: modules of ours, and the loop that its users write."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

import torchnorm
from parity_tests.situations.case import RULES, Block, Case, Structure
from parity_tests.situations.plain import NORMALIZER_EPSILON
from parity_tests.situations.steppers import MOMENTUM
from parity_tests.situations.values import OUTPUTS, WINDOW, Batch, Params, Values, extents

CONVOLUTIONS: dict[int, Any] = {1: torchnorm.Conv1d, 2: torchnorm.Conv2d}
ACTIVATIONS = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "silu": torch.nn.functional.silu,
    "softplus": torch.nn.functional.softplus,
    "sigmoid": torch.sigmoid,
}
KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {}),
    "momentum": (torch.optim.SGD, {"momentum": MOMENTUM}),
    "nesterov": (torch.optim.SGD, {"momentum": MOMENTUM, "nesterov": True}),
    "adam": (torch.optim.Adam, {}),
    "adamw": (torch.optim.AdamW, {}),
}


class Net(torch.nn.Module):
    """The network of a structure."""

    def __init__(self, structure: Structure, rule: torchnorm.Rule) -> None:
        super().__init__()
        self.network, rank = structure.network, len(structure.network.space)
        common: Any = {"rule": rule, "dtype": getattr(torch, structure.dtype)}
        width = self.network.inputs
        for n, block in enumerate(self.network.blocks):
            settings = common | {"bias": block.bias, "gate": block.gate}
            if _deferred(block):
                settings["gate"] = torchnorm.DEFERRED
            if rank:
                place = {"stride": block.stride, "padding": block.padding}
                layer = CONVOLUTIONS[rank](width, block.width, WINDOW, **place, **settings)
            else:
                layer = torchnorm.Linear(width, block.width, **settings)
            setattr(self, f"block_{n}", layer)
            width = block.width
        width *= int(np.prod(extents(structure)[-1]))
        for n in range(self.network.heads):
            setattr(self, f"head_{n}", torchnorm.Linear(width, OUTPUTS, gate=None, **common))

    def forward(self, x: Any, masks: list[Any], reached: tuple[int, ...]) -> Any:
        """[rows, heads reached, O]; channels are second."""
        rank, masks = len(self.network.space), list(masks)
        features = -1 - rank
        for n, block in enumerate(self.network.blocks):
            for _ in range(block.calls):
                x = self.block(getattr(self, f"block_{n}"), block, x, masks, features)
        # As the reference reads it: channels last.
        x = x.movedim(features, -1)
        x = x.reshape(*x.shape[: x.ndim - 1 - rank], -1)
        heads = [getattr(self, f"head_{n}")(x) for n in reached]
        if self.network.idle == "empty":
            idle = set(range(self.network.heads)) - set(reached)
            heads[0] = heads[0] + sum(getattr(self, f"head_{n}")(x[:0]).sum() for n in idle)
        return torch.stack(heads, dim=-2)

    def block(self, layer: Any, block: Block, x: Any, masks: list[Any], features: int) -> Any:
        """See `Block`."""
        u, handle = layer(x) if _deferred(block) else (layer(x), None)
        if block.normalizer in ("layer", "batch"):
            u = _normalized(u, features, over_rows=block.normalizer == "batch")
        if block.residual == "before":
            u = u + x
        if handle is not None:
            u = torchnorm.tell_gate(u, handle, block.gate)
        a = ACTIVATIONS[block.gate](u)
        if block.normalizer == "after":
            a = _normalized(a, features, over_rows=False)
        if block.dropout:
            a = a * masks.pop(0)
        return a + x if block.residual == "after" else a


def _deferred(block: Block) -> bool:
    return block.normalizer in ("layer", "batch") or block.residual == "before"


def _normalized(a: Any, features: int, *, over_rows: bool) -> Any:
    axes = [k for k in range(-a.ndim, 0) if (k != features) == over_rows]
    variance, mean = torch.var_mean(a, axes, correction=0, keepdim=True)
    return (a - mean) / torch.sqrt(variance + NORMALIZER_EPSILON)


def run(case: Case, values: Values) -> tuple[list[Params], list[dict[str, int]]]:
    """The parameters after every step, and in how many steps each layer had made none."""
    structure = case.structure
    net = Net(structure, torchnorm.Rule(decay=case.decay, epsilon=0.0, **RULES[structure.rule]))
    parameters = _parameters(net)
    with torch.no_grad():
        for key, parameter in parameters.items():
            parameter.copy_(_to_torch(values.params[key[0]][key[1]], key))
    _freeze(case, values, parameters)
    optimizer = torchnorm.optim.in_neuron_coordinates(_optimizer(case, parameters), net)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: case.schedule[n])
    found, skipped = [], []
    for step, batch in enumerate(values.batches):
        with warnings.catch_warnings():
            # Clipped by value, as some of the cases are on purpose.
            warnings.filterwarnings("ignore", "optimizer: got gradients whose largest entries are")
            if structure.wrapping.closure:
                optimizer.step(
                    lambda batch=batch, step=step: _backward(case, net, optimizer, batch, step)
                )
            else:
                _backward(case, net, optimizer, batch, step)
                optimizer.step()
        if step + 1 < structure.steps:
            schedule.step()
        found.append(_from_torch(parameters, values.params))
        skipped.append(torchnorm.optim.skipped_steps(optimizer))
    return found, skipped


def _parameters(net: Net) -> dict[tuple[str, str], Any]:
    """(layer, "kernel" or "bias") -> parameter."""
    found = {}
    for name, parameter in net.named_parameters():
        layer, what = name.split(".")
        found[layer, "kernel" if what == "weight" else what] = parameter
    return found


def _to_torch(value: np.ndarray, key: tuple[str, str]) -> torch.Tensor:
    """[*window, C, O] as [O, C, *window]."""
    value = np.moveaxis(value, (-1, -2), (0, 1)) if key[1] == "kernel" else value
    return torch.tensor(value.copy())


def _from_torch(parameters: dict[tuple[str, str], Any], like: Params) -> Params:
    found: Params = {layer: {} for layer in like}
    for (layer, name), parameter in parameters.items():
        value = parameter.detach().numpy().copy()
        found[layer][name] = np.moveaxis(value, (0, 1), (-1, -2)) if name == "kernel" else value
    return found


def _freeze(case: Case, values: Values, parameters: dict[tuple[str, str], Any]) -> None:
    """What the parameters themselves are told of it."""
    frozen = case.structure.frozen
    if frozen is None or frozen.by not in ("gradient", "stopped"):
        return
    for key, parameter in parameters.items():
        learning = values.learning[key[0]][key[1]]
        if learning.all():
            continue
        if frozen.by == "stopped":
            parameter.requires_grad_(False)
        else:
            mask = _to_torch(learning, key)
            parameter.register_hook(lambda gradient, mask=mask: gradient * mask)


def _optimizer(case: Case, parameters: dict[tuple[str, str], Any]) -> torch.optim.Optimizer:
    groups: list[dict[str, Any]] = [
        {"params": [], "lr": case.rates[n], "weight_decay": case.weight_decays[n]} for n in (0, 1)
    ]
    still: dict[str, Any] = {"params": [], "lr": 0.0, "weight_decay": case.weight_decays[0]}
    frozen = case.structure.frozen
    for key, parameter in parameters.items():
        if frozen is not None and frozen.by in ("inner", "outer"):
            if frozen.layer == key[0] and frozen.what in ("layer", key[1]):
                still["params"] += [parameter] * (frozen.by == "inner")
                continue
        groups[case.group_of(*key)]["params"].append(parameter)
    groups = [group for group in (*groups, still) if group["params"]]
    kind, settings = KINDS[case.structure.optimizer]
    if case.structure.wrapping.clip != "inside":
        return kind(groups, **settings)

    class Clipping(kind):
        """Clips what it sees."""

        def step(self, closure: Any = None) -> Any:
            """One step."""
            every = [p for group in self.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(every, case.limit)
            return super().step(closure)

    return Clipping(groups, **settings)


def _backward(case: Case, net: Net, optimizer: Any, batch: Batch, step: int) -> Any:
    """One step's gradient."""
    wrapping = case.structure.wrapping.at(step)
    optimizer.zero_grad()
    outside = wrapping.batches in ("whole", "vmap", "rows")
    scale, total = case.scale if wrapping.scaled else 1.0, 0.0
    for part in [batch] if outside else batch.parts(wrapping.parts):
        loss = _loss(case, net, part, step)
        loss = loss / wrapping.parts if wrapping.average and not outside else loss
        (loss * scale).backward()
        total = total + loss.detach()
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    if wrapping.scaled:
        for gradient in gradients:
            gradient.div_(scale)
    if wrapping.clip == "norm":
        torch.nn.utils.clip_grad_norm_(net.parameters(), case.limit)
    if wrapping.clip == "value":
        torch.nn.utils.clip_grad_value_(net.parameters(), case.limit)
    return total


def _loss(case: Case, net: Net, batch: Batch, step: int) -> Any:
    network, wrapping = case.structure.network, case.structure.wrapping.at(step)
    reached, rank = network.reached[step], len(network.space)
    x, *masks = (torch.tensor(a) for a in (batch.x, *batch.masks))
    if rank:
        x, *masks = (a.movedim(-1, 1) for a in (x, *masks))

    def forward(x: Any, *masks: Any) -> Any:
        if wrapping.remat and wrapping.batches not in ("vmap", "rows"):  # PyTorch has not both
            return checkpoint(net, x, list(masks), reached, use_reentrant=False)
        return net(x, list(masks), reached)

    if wrapping.batches in ("vmap", "rows"):
        rows = () if wrapping.batches == "rows" else (-1,)
        cut = [a.reshape(wrapping.parts, *rows, *a.shape[1:]) for a in (x, *masks)]
        out = torch.func.vmap(forward)(*cut)
        out = out.reshape(len(x), *out.shape[-2:])
    else:
        out = forward(x, *masks)
    return (out - torch.tensor(batch.y[:, list(reached)])).square().sum() / 2 / len(x)
