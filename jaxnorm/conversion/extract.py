"""An activation cut out of a traced program, as a gate for arrays of any shape and dtype."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm.activations import JointGate, gate_slope, resolve_gate
from jaxnorm.compat import varying_axes
from jaxnorm.conversion.elementwise import CUSTOM, SAME_ENTRIES
from jaxnorm.conversion.pointwise import Pointwise
from jaxnorm.conversion.region import Region

#: Two slopes that agree so well, up to a factor, give the same moments; a traced program holds the
#: digits of its own dtype only.
_SAME = 1e-6

#: No activation has a kink on these, and none of jax.nn's agree on them without being the same. Far
#: enough for what is clipped at a large value.
_GRID = np.sort(np.concatenate([s * np.geomspace(1e-4, 1.03e4, 1000) for s in (-1, 1)])) + 1e-5 / 3

#: Where most values are: what a slope is measured by, so that a tail that grows hides nothing ...
_CENTER = np.abs(_GRID) < 4

#: ... and where nothing that is written sensibly overflows.
_NEAR = np.abs(_GRID) < 30

_NAMES = (
    "relu gelu gelu_erf silu tanh sigmoid elu selu leaky_relu relu6 softplus hard_tanh "
    "hard_sigmoid hard_silu mish log_sigmoid soft_sign squareplus sparse_plus sparse_sigmoid"
).split()


class ExtractedGate:
    """An elementwise activation that was found in a program.

    Args:
        phi: the activation, for arrays of any shape.
        slope: its derivative.
        name: what the program calls it.
    """

    def __init__(self, phi: Callable[[Any], Any], slope: Callable[[Any], Any], name: str) -> None:
        self.__name__ = name
        self._arguments = (phi, slope, name)
        self._phi = jax.custom_jvp(phi)
        self._phi.defjvp(lambda z, t: (phi(*z), slope(*z) * t[0]))

    def __call__(self, z: Any) -> Any:
        """Apply the activation."""
        return self._phi(z)

    def __repr__(self) -> str:
        return f"<{self.__name__}>"

    def __reduce__(self) -> Any:
        return ExtractedGate, self._arguments


class Sum:
    """The sum of several functions of one value."""

    def __init__(self, functions: list[Callable[[Any], Any]]) -> None:
        self.functions = functions

    def __call__(self, z: Any) -> Any:
        """Add them."""
        return sum(function(z) for function in self.functions)


@dataclass(eq=False)
class Extracted:
    """What a value is as a function of a layer's output."""

    gate: Any  # None if the function is linear or cannot be one
    name: str  # in words
    slope: Any  # on the grid, with a largest magnitude of 1 around 0
    phi: Any = None  # the function itself, for any shape
    run_slope: Any = None  # its derivative, likewise

    @property
    def linear(self) -> bool:
        """Whether its slope is the same everywhere."""
        return self.slope is not None and bool(np.ptp(self.slope) <= _SAME)

    @property
    def distance(self) -> bool:
        """Whether it grows alike on both sides of 0, as a square or an absolute value does."""
        if self.slope is None:
            return False
        slope = self.slope[_CENTER]
        odd = np.allclose(slope, -slope[::-1], atol=1e-3)
        return bool(odd and slope[-1] > 0 and np.all(slope[len(slope) // 2 :] > -_SAME))

    def same(self, other: "Extracted") -> bool:
        """Whether both give a layer the same weights."""
        if self.slope is None or other.slope is None:
            return self is other
        # (Up to the sign: z and 1 - z of a gate that blends.)
        return _alike(self.slope, other.slope) or _alike(self.slope, -other.slope)


def extract(region: Region, end: Any) -> Extracted:
    """The function from a region's source to one of its ends."""
    name = _name(region, end)
    if not jnp.issubdtype(end.aval.dtype, jnp.floating):
        return Extracted(None, "a comparison", None)
    run = _replay(region, end)

    def derivative(z):
        a, pull = jax.vjp(run, z)
        return pull(jnp.ones_like(a))[0]

    try:
        phi, slope = (Pointwise(_traced(each, region)) for each in (run, derivative))
        with jax.ensure_compile_time_eval(), jax.enable_x64(True):
            values = _unit(slope(jnp.asarray(_GRID)))
    except Exception as error:  # a rule of its own that does not fit any shape
        return Extracted(None, f"{name or 'a function'} ({type(error).__name__})", None)
    known = _recognize(values, name)
    if known is not None:
        return Extracted(known, known, values, phi, slope)
    gate = ExtractedGate(phi, slope, name or "elementwise")
    return Extracted(gate, gate.__name__, values, phi, slope)


def _traced(function: Callable[[Any], Any], region: Region) -> Any:
    """The program of a function of the region's source."""
    aval = region.source.aval
    plain = jax.ShapeDtypeStruct(aval.shape, aval.dtype)
    return jax.make_jaxpr(lambda z: function(_varying_like(z, aval)))(plain)


def _varying_like(value: Any, aval: Any) -> Any:
    """The value, which varies along the manual mesh axes (of a `shard_map`) that the other does."""
    missing = tuple(varying_axes(aval) - varying_axes(value))
    return jax.lax.pcast(value, missing, to="varying") if missing else value


def _unit(slope: Any) -> np.ndarray:
    values = np.broadcast_to(np.asarray(slope, np.float64), _GRID.shape)
    size = np.where(np.isfinite(values), np.abs(values), 0.0)
    return values / (size[_CENTER].max() or size.max() or 1.0)


def _alike(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two slopes are the same at every point, but for an overflow far out."""
    compared = _NEAR | (np.isfinite(a) & np.isfinite(b))
    return bool(np.allclose(a[compared], b[compared], rtol=_SAME, atol=_SAME, equal_nan=True))


def _recognize(values: np.ndarray, name: str) -> str | None:
    """The name of the activation of jax.nn with this slope, up to a factor."""
    names = [name, *_NAMES] if name in _NAMES else _NAMES
    for each in names:
        if _alike(np.abs(values), _known_slope(each)):
            return each
    return None


@functools.cache
def _known_slope(name: str) -> np.ndarray:
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        return np.abs(_unit(jax.jit(functools.partial(gate_slope, name))(jnp.asarray(_GRID))))


def is_activation(name: str, phi: Callable[[Any], Any]) -> bool:
    """Whether phi has the values of the named activation too, not only its slope up to a factor."""
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        z = jnp.asarray(_GRID)
        expected = resolve_gate(name)(z)
        return bool(jnp.allclose(phi(z), expected, rtol=_SAME, atol=_SAME))


def needed(region: Region, end: Any) -> list[Any]:
    """The steps of the region that the end depends on, in order."""
    wanted, steps = {id(end)}, []
    for step in reversed(region.steps):
        if any(id(value) in wanted for value in step.outputs):
            steps.append(step)
            wanted.update(id(value) for value in step.inputs if value in region.order)
    return steps[::-1]


def _name(region: Region, end: Any) -> str:
    """The outermost function that the whole activation was called in, or what it consists of."""
    steps = [
        s for s in needed(region, end) if s.name not in (*SAME_ENTRIES, "convert_element_type")
    ]
    if not steps:
        return ""
    names = [[name for name in _call_names(step) if name] for step in steps]
    shared = [name for name in names[0] if all(name in others for others in names)]
    fresh = [name for name in shared if name not in region.source_calls]
    return fresh[0].strip("_") if fresh else ""


def _call_names(step: Any) -> list[str]:
    names = [step.eqn.params.get("name", "")] if step.name in CUSTOM else []
    names += [step.name] if step.name in ("tanh", "logistic", "sin", "cos", "exp") else []
    return [*step.calls, *names]


def _replay(region: Region, end: Any) -> Callable[[Any], Any]:
    """The end as a function of the source, in the shapes of the program."""
    steps = needed(region, end)

    def known(value: Any) -> Any:
        if value.number is not None:
            return _varying_like(jnp.asarray(value.number, value.aval.dtype), value.aval)
        return _run(value.maker, [known(each) for each in value.maker.inputs])[0]

    def run(z: Any) -> Any:
        values = {region.source: z}
        for step in steps:
            through = region.through.get(step)
            if through is not None:
                results = [values[through]]
            else:
                results = _run(step, [values[v] if v in values else known(v) for v in step.inputs])
            values.update(zip(step.outputs, results, strict=True))
        return values[end]

    return run


def _run(step: Any, inputs: list[Any]) -> list[Any]:
    eqn = step.eqn
    params = eqn.primitive.get_bind_params(eqn.params)
    functions, params = params if isinstance(params, tuple) else ((), params)
    out = eqn.primitive.bind(*functions, *inputs, **params)
    return list(out) if eqn.primitive.multiple_results else [out]


def extract_joint(region: Region, end: Any) -> tuple[Any, str] | None:
    """(gate, name) of a value that reads several entries of the last axis, None if it is linear.

    Raises:
        NotImplementedError: for what no gate can be made of.
    """
    aval = region.source.aval
    try:
        phi = Pointwise(_traced(_replay(region, end), region), last_axis=True)
        slopes = []
        with jax.ensure_compile_time_eval(), jax.enable_x64(True):
            z = jnp.asarray(np.random.default_rng(0).normal(size=(7, aval.shape[-1])))
            for gate in (JointGate(phi), "glu"):
                slopes.append(np.abs(np.asarray(gate_slope(gate, z), np.float64)))
    except Exception as error:
        raise NotImplementedError(str(error)) from error
    if not np.ptp(slopes[0], axis=0).any():
        return None
    if slopes[0].shape == slopes[1].shape and np.allclose(*slopes, rtol=0, atol=_SAME):
        return "glu", "glu"
    name = _name(region, end) or "gated unit"
    phi.__name__ = name  # type: ignore[attr-defined]
    return JointGate(phi), name
