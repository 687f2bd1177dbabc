"""An activation cut out of a traced program, as a gate for arrays of any shape and dtype."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal

from jaxnorm.activations import JointGate, gate_slope, resolve_gate

ELEMENTWISE = set(
    """abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp
    convert_element_type cos cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt
    integer_pow is_finite le lgamma log log1p logistic lt max min mul ne neg not or pow rem round
    rsqrt select_n sign sin sinh sqrt square stop_gradient sub tan tanh xor""".split()
)

#: Every entry stays what it is: only its place changes.
SAME_ENTRIES = set(
    """broadcast_in_dim copy copy_p expand_dims name optimization_barrier pcast pvary
    reduce_precision reshape rev sharding_constraint squeeze transpose""".split()
)

#: Calls of one program, opened where they are met ...
_CALLS = {"jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2"}

#: ... and those with a derivative of their own, which an activation keeps.
_CUSTOM = {"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"}

#: Two slopes that agree so well, up to a factor, give the same moments; a traced program holds the
#: digits of its own dtype only.
_SAME = 1e-6

#: No activation has a kink on these, and none of jax.nn's agree on them without being the same. Far
#: enough for what is clipped at a large value.
_GRID = np.sort(np.concatenate([s * np.geomspace(1e-4, 1.03e4, 1000) for s in (-1, 1)])) + 1e-5 / 3

#: Where most values are: what a slope is measured by, so that a tail that grows hides nothing ...
_CENTRE = np.abs(_GRID) < 4

#: ... and where nothing that is written sensibly overflows.
_NEAR = np.abs(_GRID) < 30

_NAMES = (
    "relu gelu gelu_erf silu tanh sigmoid elu selu leaky_relu relu6 softplus hard_tanh "
    "hard_sigmoid hard_silu mish log_sigmoid soft_sign squareplus sparse_plus sparse_sigmoid"
).split()


def body_of(eqn: Any) -> Any:
    """The program that a call opens, closed; None for anything else."""
    if eqn.primitive.name not in _CALLS | _CUSTOM:
        return None
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        body = eqn.params.get(name)
        if isinstance(body, ClosedJaxpr):
            return body
        if body is not None and not body.constvars:
            return ClosedJaxpr(body, ())
    return None


def is_elementwise(eqn: Any) -> bool:
    """Whether an equation is an elementwise function, or a call of one with its own derivative."""
    if eqn.primitive.name in ELEMENTWISE:
        return True
    return eqn.primitive.name in _CUSTOM and _all_elementwise(body_of(eqn))


def _all_elementwise(body: Any) -> bool:
    return body is not None and all(
        eqn.primitive.name in ELEMENTWISE
        or (eqn.primitive.name in SAME_ENTRIES and eqn.invars[0].aval.size == 1)
        or (eqn.primitive.name in _CALLS | _CUSTOM and _all_elementwise(body_of(eqn)))
        for eqn in body.jaxpr.eqns
    )


class ExtractedGate:
    """An elementwise activation that was found in a program.

    Args:
        phi: the activation, for arrays of any shape.
        slope: its derivative.
        name: what the program calls it.
    """

    def __init__(self, phi: Callable[[Any], Any], slope: Callable[[Any], Any], name: str) -> None:
        self.__name__ = name
        self._phi = jax.custom_jvp(phi)
        self._phi.defjvp(lambda z, t: (phi(*z), slope(*z) * t[0]))

    def __call__(self, z: Any) -> Any:
        """Apply the activation."""
        return self._phi(z)

    def __repr__(self) -> str:
        return f"<{self.__name__}>"


@dataclass(eq=False)
class Extracted:
    """What a value is as a function of a layer's output.

    Attributes:
        gate: for a layer, None if the function is linear.
        name: in words.
        how: how it was recognized.
        slope: on the grid, with a largest magnitude of 1 around 0.
        phi: the function itself, for any shape.
    """

    gate: Any
    name: str
    how: str
    slope: Any
    phi: Any = None

    @property
    def linear(self) -> bool:
        """Whether its slope is the same everywhere."""
        return self.slope is not None and bool(np.ptp(self.slope) <= _SAME)

    def same(self, other: "Extracted") -> bool:
        """Whether both give a layer the same weights."""
        if self.slope is None or other.slope is None:
            return self is other
        return _alike(self.slope, other.slope)


def extract(cone: Any, end: Any) -> Extracted:
    """The function from a cone's source to one of its ends."""
    name = _name(cone, end)
    if not jnp.issubdtype(end.aval.dtype, jnp.floating):
        return Extracted(None, "a comparison", "", None)
    run = _replay(cone, end)
    aval = jax.ShapeDtypeStruct(cone.source.aval.shape, cone.source.aval.dtype)

    def derivative(z):
        a, pull = jax.vjp(run, z)
        return pull(jnp.ones_like(a))[0]

    try:
        phi = pointwise(jax.make_jaxpr(run)(aval))
        slope = pointwise(jax.make_jaxpr(derivative)(aval))
        with jax.ensure_compile_time_eval(), jax.enable_x64(True):
            values = _unit(slope(jnp.asarray(_GRID)))
    except Exception as error:  # a rule of its own that does not fit any shape
        return Extracted(None, f"{name} ({type(error).__name__})", "", None)
    known = _recognize(values, name)
    if known is not None:
        return Extracted(known, known, "direct", values, phi)
    gate = ExtractedGate(phi, slope, name or "elementwise")
    return Extracted(gate, gate.__name__, "direct", values, phi)


def _unit(slope: Any) -> np.ndarray:
    values = np.broadcast_to(np.asarray(slope, np.float64), _GRID.shape)
    size = np.where(np.isfinite(values), np.abs(values), 0.0)
    return values / (size[_CENTRE].max() or size.max() or 1.0)


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


def _needed(cone: Any, end: Any) -> list[Any]:
    """The steps of the cone that the end depends on, in order."""
    wanted, steps = {id(end)}, []
    for step in reversed(cone.steps):
        if any(id(value) in wanted for value in step.outputs):
            steps.append(step)
            wanted.update(id(value) for value in step.inputs if value in cone.order)
    return steps[::-1]


def _name(cone: Any, end: Any) -> str:
    """The outermost function that the whole activation was called in, or what it consists of."""
    steps = [s for s in _needed(cone, end) if s.name not in (*SAME_ENTRIES, "convert_element_type")]
    if not steps:
        return ""
    names = [[name for name in _call_names(step) if name] for step in steps]
    shared = [name for name in names[0] if all(name in own for own in names)]
    fresh = [name for name in shared if name not in cone.source_calls]
    return fresh[0].strip("_") if fresh else ""


def _call_names(step: Any) -> list[str]:
    own = [step.eqn.params.get("name", "")] if step.name in _CUSTOM else []
    own += [step.name] if step.name in ("tanh", "logistic", "sin", "cos", "exp") else []
    return [*step.calls, *own]


def _replay(cone: Any, end: Any) -> Callable[[Any], Any]:
    """The end as a function of the source, in the shapes of the program."""
    steps = _needed(cone, end)

    def known(value: Any) -> Any:
        if value.number is not None:
            return jnp.asarray(value.number, value.aval.dtype)
        return _run(value.maker, [known(each) for each in value.maker.inputs])[0]

    def run(z: Any) -> Any:
        values = {cone.source: z}
        for step in steps:
            through = cone.through.get(step)
            if through is not None:
                results = [values[through]]
            else:
                own = [values[v] if v in values else known(v) for v in step.inputs]
                results = _run(step, own)
            values.update(zip(step.outputs, results, strict=True))
        return values[end]

    return run


def _run(step: Any, inputs: list[Any]) -> list[Any]:
    eqn = step.eqn
    params = eqn.primitive.get_bind_params(eqn.params)
    functions, params = params if isinstance(params, tuple) else ((), params)
    out = eqn.primitive.bind(*functions, *inputs, **params)
    return list(out) if eqn.primitive.multiple_results else [out]


def pointwise(closed: Any, last_axis: bool = False) -> Callable[[Any], Any]:
    """A program of elementwise operations, for an input of any shape and floating dtype.

    Args:
        closed: the program, of one input and one output.
        last_axis: also take splits and slices of the last axis.

    Raises:
        NotImplementedError: for a program that does something else.
    """

    def evaluate(body: Any, inputs: list[Any], dtype: Any) -> list[Any]:
        known = dict(zip(body.jaxpr.constvars, body.consts, strict=True))
        known = {v: _scalar(c, dtype) for v, c in known.items()}
        known.update(zip(body.jaxpr.invars, inputs, strict=True))

        def read(atom: Any) -> Any:
            return _scalar(atom.val, dtype) if isinstance(atom, Literal) else known[atom]

        for eqn in _live(body.jaxpr):
            own = [read(atom) for atom in eqn.invars]
            inner = body_of(eqn)
            if inner is not None:
                results = evaluate(inner, own, dtype)
            elif last_axis and eqn.primitive.name in ("split", "slice"):
                results = _parts(eqn, own[0])
            else:
                if last_axis:
                    _check_last_axis(eqn)
                results = [_one(eqn, own, dtype)]
            known.update(zip(eqn.outvars, results, strict=True))
        return [read(atom) for atom in body.jaxpr.outvars]

    def run(z: Any) -> Any:
        (a,) = evaluate(closed, [z], z.dtype)
        return a if last_axis else jnp.broadcast_to(a, z.shape)

    return run


def _live(jaxpr: Any) -> list[Any]:
    wanted, kept = {v for v in jaxpr.outvars if not isinstance(v, Literal)}, []
    for eqn in reversed(jaxpr.eqns):
        if any(v in wanted for v in eqn.outvars):
            kept.append(eqn)
            wanted.update(v for v in eqn.invars if not isinstance(v, Literal))
    return kept[::-1]


def _scalar(constant: Any, dtype: Any) -> Any:
    if np.size(constant) != 1:
        raise NotImplementedError("a constant that differs from entry to entry")
    constant = jnp.asarray(constant).reshape(())
    return constant.astype(dtype) if jnp.issubdtype(constant.dtype, jnp.floating) else constant


def _one(eqn: Any, own: list[Any], dtype: Any) -> Any:
    name = eqn.primitive.name
    if name in SAME_ENTRIES:
        return own[0]
    if name == "convert_element_type":
        new = eqn.params["new_dtype"]
        return own[0].astype(dtype if jnp.issubdtype(new, jnp.floating) else new)
    if name not in ELEMENTWISE:
        raise NotImplementedError(name)
    own = [v.astype(dtype) if jnp.issubdtype(v.dtype, jnp.floating) else v for v in own]
    return eqn.primitive.bind(*jnp.broadcast_arrays(*map(jnp.asarray, own)), **eqn.params)


def _check_last_axis(eqn: Any) -> None:
    """Refuse what makes another axis the last one, or moves its entries."""
    if eqn.primitive.name not in SAME_ENTRIES or eqn.invars[0].aval.size == 1:
        return
    before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    if eqn.primitive.name in ("rev", "transpose") or before[-1:] != after[-1:]:
        raise NotImplementedError(f"a {eqn.primitive.name} of the last axis")


def _parts(eqn: Any, z: Any) -> list[Any]:
    """A split or slice along the last axis, whatever comes before it."""
    rank = len(eqn.invars[0].aval.shape)
    if eqn.primitive.name == "split":
        if eqn.params["axis"] != rank - 1:
            raise NotImplementedError("a split of another axis")
        cuts = np.cumsum([int(size) for size in eqn.params["sizes"]])[:-1]
        return list(jnp.split(z, cuts, axis=-1))
    shape, starts = eqn.invars[0].aval.shape, eqn.params["start_indices"]
    limits, strides = eqn.params["limit_indices"], eqn.params["strides"] or (1,) * rank
    if any(starts[:-1]) or tuple(limits[:-1]) != shape[:-1] or set(strides[:-1]) - {1}:
        raise NotImplementedError("a slice of another axis")
    return [z[..., starts[-1] : limits[-1] : strides[-1]]]


def extract_joint(cone: Any, end: Any) -> tuple[Any, str] | None:
    """(gate, name) of a value that reads several entries of the last axis, None if it is linear.

    Raises:
        NotImplementedError: for what no gate can be made of.
    """
    aval = jax.ShapeDtypeStruct(cone.source.aval.shape, cone.source.aval.dtype)
    try:
        phi = pointwise(jax.make_jaxpr(_replay(cone, end))(aval), last_axis=True)
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
    name = _name(cone, end) or "gated unit"
    phi.__name__ = name  # type: ignore[attr-defined]
    return JointGate(phi), name
