"""Which operations act elementwise, and programs of them for arrays of any shape and dtype."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal

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
CUSTOM = {"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"}


def body_of(eqn: Any) -> Any:
    """The program that a call opens, closed; None for anything else."""
    if eqn.primitive.name not in _CALLS | CUSTOM:
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
    return eqn.primitive.name in CUSTOM and _all_elementwise(body_of(eqn))


def _all_elementwise(body: Any) -> bool:
    return body is not None and all(
        eqn.primitive.name in ELEMENTWISE
        or (eqn.primitive.name in SAME_ENTRIES and eqn.invars[0].aval.size == 1)
        or (eqn.primitive.name in _CALLS | CUSTOM and _all_elementwise(body_of(eqn)))
        for eqn in body.jaxpr.eqns
    )


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
            arguments = [read(atom) for atom in eqn.invars]
            inner = body_of(eqn)
            if inner is not None:
                results = evaluate(inner, arguments, dtype)
            elif last_axis and eqn.primitive.name in ("split", "slice"):
                results = _parts(eqn, arguments[0])
            else:
                if last_axis:
                    _check_last_axis(eqn)
                results = [_one(eqn, arguments, dtype)]
            known.update(zip(eqn.outvars, results, strict=True))
        return [read(atom) for atom in body.jaxpr.outvars]

    def run(z: Any) -> Any:
        (a,) = evaluate(closed, [z], z.dtype)
        return a if last_axis else jnp.broadcast_to(a, z.shape)

    return run


def _live(jaxpr: Any) -> list[Any]:
    wanted, live = {v for v in jaxpr.outvars if not isinstance(v, Literal)}, []
    for eqn in reversed(jaxpr.eqns):
        if any(v in wanted for v in eqn.outvars):
            live.append(eqn)
            wanted.update(v for v in eqn.invars if not isinstance(v, Literal))
    return live[::-1]


def _scalar(constant: Any, dtype: Any) -> Any:
    if np.size(constant) != 1:
        raise NotImplementedError("a constant that differs from entry to entry")
    constant = jnp.asarray(constant).reshape(())
    return constant.astype(dtype) if jnp.issubdtype(constant.dtype, jnp.floating) else constant


def _one(eqn: Any, arguments: list[Any], dtype: Any) -> Any:
    name = eqn.primitive.name
    if name in SAME_ENTRIES:
        return arguments[0]
    if name == "convert_element_type":
        new = eqn.params["new_dtype"]
        return arguments[0].astype(dtype if jnp.issubdtype(new, jnp.floating) else new)
    if name not in ELEMENTWISE:
        raise NotImplementedError(name)
    arguments = [v.astype(dtype) if jnp.issubdtype(v.dtype, jnp.floating) else v for v in arguments]
    return eqn.primitive.bind(*jnp.broadcast_arrays(*map(jnp.asarray, arguments)), **eqn.params)


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
