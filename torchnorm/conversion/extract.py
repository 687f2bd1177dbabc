"""The recorded operations from a layer's output to its activation, as a function; recognized."""

import functools
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from torchnorm.activations import gate_slope, resolve_gate, without_hooks
from torchnorm.conversion.elementwise import AXIS_ARGUMENT, CASTS, DROPOUTS
from torchnorm.conversion.trace import Op, Value


@dataclass(frozen=True)
class Slot:
    """In the arguments of a step: the value of that number."""

    number: int


@dataclass(frozen=True, eq=False)
class Step:
    """One recorded operation; the function by its name where it cannot be pickled."""

    function: Any
    name: str
    args: tuple
    kwargs: tuple[tuple[str, Any], ...]

    def __call__(self, values: list) -> Any:
        """Run it on the values so far."""
        args = [_fill(arg, values) for arg in self.args]
        if self.name in CASTS:  # only what is not floating needs one: the rest keeps z's dtype
            return args[0] if args[0].is_floating_point() else args[0].to(values[0].dtype)
        kwargs = {key: _fill(value, values) for key, value in self.kwargs}
        function = _by_name(self.name) if self.function is None else self.function
        return function(*args, **kwargs)

    def __str__(self) -> str:
        shown = [_show(a) for a in self.args if not isinstance(a, Slot)]
        shown += [f"{k}={_show(v)}" for k, v in self.kwargs if not isinstance(v, Slot | bool)]
        return f"{self.name.strip('_')}({', '.join(shown)})" if shown else self.name.strip("_")


def _fill(arg: Any, values: list) -> Any:
    if isinstance(arg, Slot):
        return values[arg.number]
    return [_fill(a, values) for a in arg] if isinstance(arg, list) else arg


def _show(arg: Any) -> str:
    return f"{arg.item():g}" if isinstance(arg, torch.Tensor) else str(arg)


def _by_name(name: str) -> Callable:
    for place in (F, torch, torch.Tensor, torch.ops.aten):
        if hasattr(place, name):
            return getattr(place, name)
    raise AttributeError(name)


class Replay:
    """The recorded operations from one tensor to another, as a function of the first.

    Args:
        steps: in order; `Slot(0)` is the argument, the results are numbered after it.
    """

    def __init__(self, steps: tuple[Step, ...]) -> None:
        self.steps = steps
        self.__name__ = " ".join(str(step) for step in steps)
        # What it does: the same of the same operations in another place. (Made here, because
        # torch.compile asks for the hash.)
        self.words = repr([(step.name, step.args, step.kwargs) for step in steps])

    def __call__(self, z: torch.Tensor) -> Any:
        """Run them."""
        values: list[Any] = [z]
        out: Any = z
        for step in self.steps:
            out = step(values)
            values.extend(out if isinstance(out, tuple | list) else [out])
        return out

    def __repr__(self) -> str:
        return self.__name__

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Replay) and self.words == other.words

    def __hash__(self) -> int:
        return hash(self.words)


class Sum:
    """Several activations of one value: its derivative is the sum of theirs.

    Args:
        gates: of the activations.
    """

    def __init__(self, gates: list[Any]) -> None:
        self.gates = gates
        self.__name__ = " + ".join(
            g if isinstance(g, str) else g.__name__ if hasattr(g, "__name__") else type(g).__name__
            for g in gates
        )

    def __call__(self, z: torch.Tensor) -> torch.Tensor:
        """Add them."""
        return sum(without_hooks(resolve_gate(gate))(z) for gate in self.gates)  # type: ignore[return-value]

    def __repr__(self) -> str:
        return self.__name__


def make_step(op: Op, slots: dict[Value, int]) -> Step:
    """A step out of a recorded call; what is in `slots` are values, the rest constants."""
    args, kwargs = from_the_end(op)
    function = None if op.in_place or op.name in DROPOUTS else op.func
    if function is not None:
        try:
            function = function if pickle.loads(pickle.dumps(function)) is function else None
        except Exception:
            function = None
    if op.name == "rrelu":  # its mean slope: the random one of the watched pass is nobody's
        args, kwargs, function = args[:3], {**kwargs, "training": False}, F.rrelu
    kwargs = {k: v for k, v in kwargs.items() if k not in ("inplace", "_stacklevel")}
    name = op.name
    if name == "__setitem__":  # z[z < 0] = 0, which returns nothing
        name, function = "masked_fill", torch.Tensor.masked_fill
    return Step(
        function,
        name,
        tuple(_hollow(arg, slots) for arg in args),
        tuple((key, _hollow(value, slots)) for key, value in kwargs.items()),
    )


def from_the_end(op: Op) -> tuple[tuple, dict]:
    """The arguments, with axes counted from the end: the rule may lay all leading axes in one."""
    args, kwargs = list(op.args), dict(op.kwargs)
    rank, place = len(op.ins[0].shape) if op.ins else 0, AXIS_ARGUMENT.get(op.name)
    if place is not None:
        if len(args) > place and isinstance(args[place], int):
            args[place] -= rank if args[place] >= 0 else 0
        if isinstance(kwargs.get("dim"), int):
            kwargs["dim"] -= rank if kwargs["dim"] >= 0 else 0
    if op.name == "__getitem__" and isinstance(args[1], tuple) and len(args[1]) == rank:
        index = list(args[1])
        if not any(entry is Ellipsis or entry is None for entry in index):
            while index and index[0] == slice(None):
                index.pop(0)
            args[1] = (Ellipsis, *index)
    return tuple(args), kwargs


def _hollow(arg: Any, slots: dict[Value, int]) -> Any:
    if isinstance(arg, Value):
        if arg in slots:
            return Slot(slots[arg])
        assert arg.number is not None
        # A constant has one entry: without axes, it goes with any device and dtype.
        return arg.number.detach().cpu().reshape(()).clone()
    return [_hollow(a, slots) for a in arg] if isinstance(arg, list) else arg


def has_slope(phi: Callable[[torch.Tensor], torch.Tensor]) -> bool:
    """Whether PyTorch can differentiate a function forward, as a gate is."""
    try:
        gate_slope(phi, torch.linspace(-1.7, 1.9, 6, dtype=torch.float64, device="cpu"))
    except NotImplementedError:
        return False
    except Exception:  # it wants another shape
        return True
    return True


_NAMED = (
    "relu relu6 gelu gelu_tanh silu tanh sigmoid leaky_relu elu selu mish softplus hardswish "
    "hardsigmoid hardtanh logsigmoid softsign tanhshrink softshrink hardshrink"
).split()


@functools.cache
def _known() -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """Points for values, points for slopes (no kink is there), and both of each activation."""
    with torch.device("cpu"):
        far = torch.logspace(-6, 4, 201, dtype=torch.float64)
        near = torch.linspace(-12, 12, 2401, dtype=torch.float64)
        between = torch.linspace(-4.03, 4.01, 97, dtype=torch.float64)
    points = torch.cat([-far, near, far])
    known = {name: (resolve_gate(name)(points), gate_slope(name, between)) for name in _NAMED}
    return points, between, known


def recognize(phi: Callable[[torch.Tensor], torch.Tensor]) -> str | None:
    """The name of an activation that has the same values everywhere, to rounding; or None."""
    points, between, known = _known()
    try:
        with torch.no_grad():
            values = phi(points.clone())
        slope = gate_slope(phi, between)  # a detached factor leaves values as they are
    except Exception:
        return None
    if values.dtype != torch.float64 or values.shape != points.shape or slope is None:
        return None
    for name, (expected, expected_slope) in known.items():
        if torch.allclose(values, expected, rtol=1e-12, atol=1e-14):
            if torch.allclose(slope.double(), expected_slope.double(), atol=1e-9):
                return name
    return None
