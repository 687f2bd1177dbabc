"""Which operations act elementwise, and activations made of the recorded ones."""

import functools
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from torchnorm.activations import gate_slope, resolve_gate

# Names as `torch.overrides` reports them; those of in-place forms end in one underscore more.
ACTIVATIONS = frozenset(
    "relu relu6 leaky_relu elu selu celu gelu silu mish hardswish hardsigmoid hardtanh softplus "
    "softsign tanhshrink softshrink hardshrink logsigmoid log_sigmoid sigmoid tanh threshold "
    "_threshold rrelu prelu clamp clamp_min clamp_max clip sin cos erf atan arctan glu".split()
)
NONLINEAR = ACTIVATIONS | frozenset(
    "exp expm1 log log1p log2 sqrt rsqrt square pow __pow__ __rpow__ reciprocal abs absolute "
    "__rdiv__ __rtruediv__ maximum minimum where sinh cosh tan asinh sign sgn logaddexp exp2 "
    "masked_fill erfc softmax_ float_power heaviside xlogy".split()
)
SUMS = frozenset("add sub __add__ __radd__ __iadd__ __sub__ __rsub__ __isub__ rsub".split())
PRODUCTS = frozenset(
    "mul multiply __mul__ __rmul__ __imul__ div divide true_divide __truediv__ __itruediv__".split()
)
TESTS = frozenset(
    "gt ge lt le eq ne greater less logical_and logical_or logical_not __and__ __or__ __invert__ "
    "zeros_like ones_like full_like".split()
)
CASTS = frozenset("to float double half bfloat16 type type_as".split())
ELEMENTWISE = NONLINEAR | SUMS | PRODUCTS | TESTS | CASTS | {"neg", "negative", "clone", "positive"}
SPLITS = frozenset(
    "chunk split tensor_split unbind __getitem__ narrow select glu split_with_sizes".split()
)
POOLS = frozenset(
    f"{kind}_pool{rank}d"
    for kind in ("max", "avg", "adaptive_max", "adaptive_avg", "lp")
    for rank in (1, 2, 3)
)
VIEWS = (
    frozenset(
        "view reshape flatten unflatten contiguous squeeze unsqueeze transpose permute swapaxes "
        "swapdims movedim moveaxis T mT t view_as reshape_as requires_grad_ cpu cuda".split()
    )
    | CASTS
    | {"clone"}
)
PERMUTATIONS = frozenset(
    "transpose permute swapaxes swapdims movedim moveaxis T mT t transpose_ swapaxes_".split()
)
DROPOUTS = frozenset(
    "dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout "
    "feature_alpha_dropout".split()
)


def plain_name(name: str) -> str:
    """The name without the underscore of an in-place form."""
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


@dataclass(frozen=True)
class Slot:
    """In the arguments of a step: the value of that number."""

    number: int


@dataclass(frozen=True, eq=False)
class Step:
    """One recorded operation; the function is kept by name where it cannot be pickled."""

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


def make_step(func: Any, name: str, args: tuple, kwargs: dict, slots: dict[int, int]) -> Step:
    """A step out of a recorded call; tensors in `slots` (by id) are values, the rest constants."""
    plain = plain_name(name)
    function = None if plain != name or name in DROPOUTS else func
    if function is not None:
        try:
            function = func if pickle.loads(pickle.dumps(func)) is func else None
        except Exception:
            function = None
    if plain == "rrelu":  # its mean slope: the random one of the watched pass is nobody's
        args, kwargs, function = args[:3], {**kwargs, "training": False}, F.rrelu
    kwargs = {k: v for k, v in kwargs.items() if k not in ("inplace", "_stacklevel")}
    return Step(
        function,
        plain,
        tuple(_hollow(arg, slots) for arg in args),
        tuple((key, _hollow(value, slots)) for key, value in kwargs.items()),
    )


def _hollow(arg: Any, slots: dict[int, int]) -> Any:
    if isinstance(arg, torch.Tensor):
        # A constant has one entry: without axes, it goes with any device and dtype.
        return Slot(slots[id(arg)]) if id(arg) in slots else arg.detach().cpu().reshape(()).clone()
    return [_hollow(a, slots) for a in arg] if isinstance(arg, list) else arg


_NAMED = (
    "relu relu6 gelu gelu_tanh silu tanh sigmoid leaky_relu elu selu mish softplus hardswish "
    "hardsigmoid hardtanh logsigmoid softsign tanhshrink softshrink hardshrink"
).split()


@functools.cache
def _named_values() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    far = torch.logspace(-6, 4, 201, dtype=torch.float64)
    near = torch.linspace(-12, 12, 2401, dtype=torch.float64)
    points = torch.cat([-far, near, far])
    return points, {name: resolve_gate(name)(points) for name in _NAMED}


def name_of(phi: Callable[[torch.Tensor], torch.Tensor]) -> str | None:
    """The name of an activation that has the same values everywhere, to rounding; or None."""
    points, named = _named_values()
    try:
        with torch.no_grad():
            values = phi(points.clone())
    except Exception:
        return None
    if values.dtype != torch.float64 or values.shape != points.shape:
        return None
    for name, expected in named.items():
        if torch.allclose(values, expected, rtol=1e-12, atol=1e-14) and _same_slope(name, phi):
            return name
    return None


def _same_slope(name: str, phi: Callable) -> bool:
    """Whether the derivative agrees too: a detached factor leaves values as they are."""
    points = torch.linspace(-4.03, 4.01, 97, dtype=torch.float64)
    try:
        expected, slope = gate_slope(name, points), gate_slope(phi, points)
    except Exception:
        return False
    assert expected is not None
    return slope is not None and torch.allclose(slope.double(), expected.double(), atol=1e-9)
