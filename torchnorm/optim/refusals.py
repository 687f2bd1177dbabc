"""Which optimizers are refused, by what they do."""

import inspect
import re
import warnings
from collections.abc import Iterable
from typing import Any

import torch

from torchnorm.compiling import uncompiled
from torchnorm.coordinates import PLAIN

#: By name what is not seen in the class, nor in its first step.
_EVALUATES = re.compile("LBFGS|.*SAM")
_KEEPS = re.compile("ASGD|Prodigy|L?DoW?G|FTRL|.*ScheduleFree.*|.*Lookahead|Ranger.*")
#: So near is a state that is in another precision.
_NEAR = 1e-2
#: Of fewer entries it may be near by chance.
_ENTRIES = 8
#: So many entries of a gradient are not equal by chance.
_SEVERAL = 3


def check_optimizer(optimizer: Any, name: str) -> None:
    """Raise an error for what is no optimizer, in other coordinates already, or around another.

    Args:
        optimizer: what a user gave.
        name: of the function of `torchnorm.optim` that it was given to.
    """
    check_kind(optimizer, name)
    if is_wrapped(optimizer):
        raise ValueError(
            "optimizer: got one that is in neuron coordinates already, expected another"
        )


def is_wrapped(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer is in neuron coordinates."""
    # Not by its class: without layers that is its base (see `wrapped_class`).
    return "_neuronwise" in vars(optimizer)


def check_kind(optimizer: Any, name: str) -> None:
    """Raise an error for what is no optimizer, or around another one."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer: got {type(optimizer).__name__}, expected a torch.optim one")
    kind = type(optimizer).__name__
    if kind == "ZeroRedundancyOptimizer":
        raise ValueError(
            f"optimizer: got {kind}, expected one that steps all parameters in each process; this "
            "one gives a weight and its bias to different ones: shard with "
            "torch.distributed.fsdp.fully_shard"
        )
    for attribute, value in vars(optimizer).items():
        held = list(value.values()) if isinstance(value, dict) else value
        held = held if isinstance(held, list | tuple) else [held]
        if any(isinstance(each, torch.optim.Optimizer) for each in held):
            raise ValueError(
                f"optimizer: got {kind}, which runs the optimizer that it has as .{attribute}, "
                f"expected that one; call {name} with it, before what wraps it "
                "(accelerator.prepare, Lookahead, ...), or with "
                f"optimizer.{attribute} if the wrapper has made it itself"
            )


def check_needs_gradients_only(optimizer: torch.optim.Optimizer) -> None:
    """Raise a ValueError for an optimizer that is known to need more."""
    for kind in type(optimizer).__mro__:
        if _KEEPS.fullmatch(kind.__name__):
            _refuse(kind.__name__, _kept("parameters"))
        if _EVALUATES.fullmatch(kind.__name__):
            _refuse(kind.__name__, _EVALUATED)
    if callable(getattr(optimizer, "eval", None)):
        _refuse(type(optimizer).__name__, _kept("parameters that its eval() takes"))
    if _needs_closure(type(optimizer)) or hasattr(type(optimizer), "second_step"):
        _refuse(type(optimizer).__name__, _EVALUATED)


def _needs_closure(kind: type[torch.optim.Optimizer]) -> bool:
    try:
        closure = inspect.signature(kind.step).parameters.get("closure")
    except ValueError:  # compiled by another compiler
        return False
    return closure is not None and closure.default is inspect.Parameter.empty


def check_state(optimizer: Any, steps: Iterable[tuple[torch.Tensor, ...]]) -> None:
    """Raise a ValueError where an optimizer has kept parameters in its first step.

    Args:
        optimizer: that has made it.
        steps: (parameter, its value before, its gradient), of each weight.
    """
    kept: set[str] | None = None
    for parameter, *step in steps:
        now, before, grad = map(flat, (parameter, *step))
        # Weights that are all the same may be met by chance.
        if now is None or before is None or grad is None or bool((before == before[:1]).all()):
            continue
        entries = _entries(optimizer, parameter).items()
        found = {entry for entry, value in entries if _is_of(flat(value), now, before, grad)}
        kept = found if kept is None else found & kept
    for entry in sorted(kept or ()):
        _refuse(type(optimizer).__name__, _kept(repr(entry)))


def _entries(optimizer: Any, parameter: torch.Tensor) -> dict[str, Any]:
    """What the optimizer has for one parameter, in its state or beside it in its group."""
    state = optimizer.state.get(parameter)
    found = dict(state) if isinstance(state, dict) else {}
    for group in optimizer.param_groups:
        at = [i for i, each in enumerate(group["params"]) if each is parameter]
        beside = {k: v for k, v in group.items() if isinstance(v, list) and k != "params"}
        for key, values in beside.items() if at else ():
            if len(values) == len(group["params"]):
                found[key] = values[at[0]]
    return found


def _is_of(value: torch.Tensor | None, *step: torch.Tensor) -> bool:
    """Whether a state is the parameter before or after a step, or nearer to it than to the rest.

    That is: a multiple of it, and any multiples of the step and of the gradient.
    """
    if value is None or value.device != step[0].device:  # a count of steps, say
        return False
    stride = -(-step[0].numel() // max(value.numel(), 1))  # Prodigy keeps every k-th entry
    now, before, grad = (each[::stride] for each in step)
    if value.shape != now.shape or not bool(
        torch.stack([value, now, before, grad]).isfinite().all()
    ):
        return False
    if value.numel() < _ENTRIES:
        return torch.equal(value, now) or torch.equal(value, before)
    if any((value - each).norm() <= _NEAR * each.norm() for each in (now, before)):
        return True
    # In this order: with weight decay the three are in one plane.
    share = _first_of(value, before, grad)
    if share is None and _first_of(value, now - before, grad) is None:
        share = _first_of(value, before, now - before, grad)
    return share is not None and share > 0.5 + _NEAR  # a weight decay may be a half


def _first_of(value: torch.Tensor, *vectors: torch.Tensor) -> float | None:
    """How often the first of the vectors is in the value; None where they do not add up to it."""
    basis = torch.stack(vectors)
    norms = basis.norm(dim=1, keepdim=True)
    units = basis / torch.where(norms > 0, norms, 1)
    coefficients = torch.linalg.pinv(units @ units.T, hermitian=True) @ (units @ value)
    if not bool((value - coefficients @ units).norm() <= _NEAR * value.norm()):
        return None
    if coefficients[0].abs() <= _NEAR * value.norm():
        return 0.0  # of a vector that is much smaller: a rounding of the others
    return float(coefficients[0] / norms[0])


def flat(value: Any) -> torch.Tensor | None:
    """A tensor, or this process' part of it, in one axis; None for what is not of real numbers."""
    value = value.to_local() if hasattr(value, "to_local") else value
    # Of exactly these: a quantized state is a subclass, which need not be able to do this.
    if type(value) not in (torch.Tensor, torch.nn.Parameter) or value.layout != torch.strided:
        return None
    return value.detach().flatten().double() if value.is_floating_point() else None


_EVALUATED = (
    "it evaluates the loss at parameters of its own, and those are not in the coordinates; use "
    "SGD, Adam or their like"
)


def _kept(what: str) -> str:
    return (
        f"it keeps {what}, and the coordinates of what it keeps change from step to step; use SGD, "
        "Adam or their like, with torch.optim.swa_utils.AveragedModel for an average"
    )


def _refuse(kind: str, why: str) -> None:
    raise ValueError(f"optimizer: got {kind}, expected one that needs gradients only; {why}")


@uncompiled
def warn_clipped(layers: Iterable[Iterable[torch.Tensor | None]]) -> None:
    """Warn of gradients, layer by layer, that `clip_grad_value_` seems to have cut off.

    By chance the largest entries of two layers are hardly ever equal to the last bit, and several
    in each. (Two biases that are added have one gradient: its largest entry is one.)
    """
    largest = [{_cut_off(g) for g in grads} - {0.0} for grads in layers]
    every = [value for values in largest for value in values]
    shared = {value for value in every if every.count(value) > 1}
    if shared:
        warnings.warn(
            f"optimizer: got gradients whose largest entries are {min(shared):g} in several "
            "layers, expected none that are clipped by value: in coordinates they must be scaled "
            "alike, or training diverges; call torch.nn.utils.clip_grad_norm_ of all parameters "
            "instead of clip_grad_value_",
            stacklevel=6,  # whoever called step()
        )


def _cut_off(gradient: torch.Tensor | None) -> float:
    """The largest magnitude, where several entries have it; else 0."""
    if gradient is None or type(gradient) not in PLAIN or gradient.layout != torch.strided:
        return 0.0
    if not gradient.numel():
        return 0.0
    sizes = gradient.abs()
    largest = sizes.amax()
    return float(largest) if int((sizes == largest).sum()) >= _SEVERAL else 0.0
