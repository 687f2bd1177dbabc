"""How an optimizer decays its parameters, and whether it needs them, found by trying it on one."""

from collections import defaultdict
from typing import Any, Literal, NamedTuple

import torch

from torchnorm.optim.layers import Pair
from torchnorm.optim.refusals import check_state

#: How a group's `weight_decay` acts: none; p <- (1 - rate * decay) p beside the step; added to the
#: gradient of SGD with momentum, which is linear; or otherwise (through the scaling of Adam, say).
Decay = Literal["none", "decoupled", "linear", "other"]

_RATE, _DECAY = 0.5, 0.25
# Whatever the default device and dtype may be.
_GENERATOR = torch.Generator("cpu").manual_seed(0)
_START, _GRADIENT = torch.randn(2, 8, 8, generator=_GENERATOR, device="cpu", dtype=torch.float32)


def decay_of(optimizer: Any, group: dict[str, Any]) -> Decay:
    """What the optimizer makes of the weight decay of one of its groups."""
    if _amount(group, "weight_decay") == 0:
        return "none"
    if isinstance(optimizer, torch.optim.SGD) and group["momentum"] != 0:
        return "linear"
    try:
        *ends, _ = _tried(optimizer, group, _START, torch.zeros_like(_START), decay=_DECAY)
    except Exception:  # whatever an optimizer that nobody knows may expect of its parameters
        return "other"
    start, steps = ends[0], range(len(ends))
    expected = [start * (1 - _RATE * _DECAY) ** count for count in steps]
    same = all(map(torch.allclose, ends, expected))
    return "decoupled" if same else "other"


def needs_values(optimizer: Any, group: dict[str, Any]) -> bool:
    """Whether a step, but for the decay, depends on the parameter that it is taken of.

    Raises:
        ValueError: for an optimizer that keeps it (see `check_state`).
    """
    steps = []
    for start in (_START, -_START.flip(0)):
        try:
            *ends, state = _tried(optimizer, group, start, _GRADIENT, decay=0.0)
        except Exception:  # whatever an optimizer that nobody knows may expect of its parameters
            return True
        check_state(state, [(state.param_groups[0]["params"][0], ends[-2], _GRADIENT)])
        steps.append([end - start for end in ends[1:]])
    return not all(map(torch.allclose, *steps))


class Decays(NamedTuple):
    """What the decay of a layer's parameters asks for; see `decay.py`.

    Attributes:
        weight: by how much of itself the weight decays beside the step, which nothing makes up for.
        plain_bias: whether the bias decays beside the step, and so is not seen with its mean.
        bias: by how much of the mean response, at the gradient of the bias, its decay would be
            wrong: where decay goes through a momentum.
        beside: by how much of themselves weight and bias decay, where the step depends on neither
            of them: then they are 0 in the coordinates. None where it may.
    """

    weight: Any
    plain_bias: bool
    bias: Any
    beside: Pair | None


def decays_of(
    optimizer: Any, owner: Any, parameters: Pair, groups: dict[int, dict[str, Any]]
) -> Decays:
    """What the decay of a layer's parameters asks for; the owner remembers what was tried."""
    weight, bias = (groups.get(id(p)) for p in parameters)
    assert weight is not None
    kind = bias_kind = owner.decay_of(optimizer, weight)
    share = amount(weight) if kind == "decoupled" else 0
    each = [weight] if bias is None or bias is weight else [weight, bias]
    if bias is not weight:
        bias_kind = "none" if bias is None else owner.decay_of(optimizer, bias)
    kinds = {kind, bias_kind} if bias is not None else {kind}
    beside = None
    if kinds <= {"none", "decoupled"}:
        if not any(owner.needs_values(optimizer, group) for group in each):
            shares: Any = ((weight, kind), (bias, bias_kind))
            beside = Pair(*(0 if kind == "none" else amount(group) for group, kind in shares))
    if bias is None:
        return Decays(share, plain_bias=False, bias=0, beside=beside)
    extra = 0
    # (Of one group, which is the usual case, it is 0.)
    if bias is not weight and "linear" in (kind, bias_kind) and not stands_still(bias):
        rate = bias["lr"]
        extra = amount(weight) / rate - bias.get("weight_decay", 0)
        if isinstance(rate, torch.Tensor):
            # As of one that is known to stand still: a device is not waited for.
            extra = torch.where(rate == 0, 0, extra)
        extra = -extra if bias.get("maximize") else extra
    return Decays(share, plain_bias="decoupled" in kinds, bias=extra, beside=beside)


def amount(group: dict[str, Any]) -> Any:
    """By how much of itself a parameter of the group decays in a step."""
    return group.get("lr", 0) * group.get("weight_decay", 0)


def stands_still(group: dict[str, Any]) -> bool:
    """Whether its rate is 0, as far as can be told without waiting for a device."""
    return _amount(group, "lr") == 0


def _amount(group: dict[str, Any], name: str) -> float:
    value = group.get(name, 0)
    known = not isinstance(value, torch.Tensor) or value.device.type == "cpu"
    return float(value) if known and not isinstance(value, tuple | list) else 1.0


def _tried(
    optimizer: Any, group: dict[str, Any], start: torch.Tensor, grad: torch.Tensor, *, decay: float
) -> list[Any]:
    """A parameter before and after each of two steps, at another rate and decay; the optimizer."""
    parameter = torch.nn.Parameter(start.clone())
    other: Any = object.__new__(type(optimizer).__bases__[0])
    rate = torch.tensor(_RATE, device="cpu") if isinstance(group["lr"], torch.Tensor) else _RATE
    settings = {"params": [parameter], "lr": rate}
    settings |= {"weight_decay": decay} if "weight_decay" in group else {}
    settings |= {name: None for name in ("fused", "foreach") if name in group}
    settings |= {"capturable": False} if "capturable" in group else {}
    vars(other).update(vars(optimizer), state=defaultdict(dict), param_groups=[group | settings])
    for name in ("step", "found_inf", "grad_scale"):
        vars(other).pop(name, None)
    step = type(other).step
    step = getattr(step, "__wrapped__", step) if getattr(step, "hooked", False) else step
    values = [parameter.detach().clone()]
    with torch.device("cpu"):  # where its state begins, whatever the default device may be
        for _ in range(2):
            parameter.grad = grad.clone()
            step(other)
            values.append(parameter.detach().clone())
    return [*values, other]
