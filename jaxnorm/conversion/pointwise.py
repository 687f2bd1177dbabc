"""Programs of elementwise operations for arrays of any shape and dtype: `Pointwise`."""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Literal

from jaxnorm.backward.sharding import varying_alike
from jaxnorm.conversion.elementwise import ELEMENTWISE, SAME_ENTRIES, body_of


class _Constant(NamedTuple):
    """A number in a program."""

    number: Any


class _Step(NamedTuple):
    """An operation by name, on values by number or constants."""

    name: str
    params: dict[str, Any]
    inputs: tuple[Any, ...]
    outputs: tuple[int, ...]


class Pointwise:
    """A program of elementwise operations, for an input of any shape and floating dtype.

    It is data, so that a model that holds it can be copied and pickled.

    Args:
        closed: the program, of one input and one output.
        last_axis: also take splits and slices of the last axis.

    Raises:
        NotImplementedError: for a program that does something else.
    """

    def __init__(self, closed: Any, last_axis: bool = False) -> None:
        self.last_axis = last_axis
        self.steps: list[_Step] = []
        self.values = 1  # the input is the first
        (self.result,) = self._lay_out(closed, [0])

    def __call__(self, z: Any) -> Any:
        """Run it."""
        known = {0: z}

        def read(atom: Any) -> Any:
            return _scalar(atom.number, z.dtype) if isinstance(atom, _Constant) else known[atom]

        for step in self.steps:
            results = _run(step, [read(atom) for atom in step.inputs], z.dtype)
            known.update(zip(step.outputs, results, strict=True))
        a = read(self.result)
        return a if self.last_axis else jnp.broadcast_to(a, z.shape)

    def _lay_out(self, closed: Any, inputs: list[Any]) -> list[Any]:
        """Append the steps of a program; returns its results."""
        constants = map(_constant, closed.consts)
        known: dict[Any, Any] = dict(zip(closed.jaxpr.constvars, constants, strict=True))
        known.update(zip(closed.jaxpr.invars, inputs, strict=True))

        def read(atom: Any) -> Any:
            return _constant(atom.val) if isinstance(atom, Literal) else known[atom]

        for eqn in _live(closed.jaxpr):
            given, inner = [read(atom) for atom in eqn.invars], body_of(eqn)
            if inner is not None:
                results = self._lay_out(inner, given)
            else:
                results = list(range(self.values, self.values + len(eqn.outvars)))
                self.values += len(results)
                name, params = self._checked(eqn)
                self.steps.append(_Step(name, params, tuple(given), tuple(results)))
            known.update(zip(eqn.outvars, results, strict=True))
        return [read(atom) for atom in closed.jaxpr.outvars]

    def _checked(self, eqn: Any) -> tuple[str, dict[str, Any]]:
        """(name, parameters) of an equation that can be run on any shape."""
        name = eqn.primitive.name
        if self.last_axis and name in ("split", "slice"):
            return name, _cuts(eqn)
        if self.last_axis:
            _check_last_axis(eqn)
        if name in SAME_ENTRIES:
            return name, {}
        # What older versions transpose a new axis into.
        if name == "reduce_sum" and eqn.invars[0].aval.size == eqn.outvars[0].aval.size:
            return "reshape", {}
        if name not in ELEMENTWISE or name not in _primitives():
            raise NotImplementedError(name)
        return name, dict(eqn.params)


@functools.cache
def _primitives() -> dict[str, Any]:
    named = {p.name: p for name, p in vars(lax).items() if name.endswith("_p")}
    return {**named, "add_any": lax.add_p}  # what autodiff adds with


def _live(jaxpr: Any) -> list[Any]:
    wanted, live = {v for v in jaxpr.outvars if not isinstance(v, Literal)}, []
    for eqn in reversed(jaxpr.eqns):
        if any(v in wanted for v in eqn.outvars):
            live.append(eqn)
            wanted.update(v for v in eqn.invars if not isinstance(v, Literal))
    return live[::-1]


def _constant(value: Any) -> _Constant:
    if np.size(value) != 1:
        raise NotImplementedError("a constant that differs from entry to entry")
    return _Constant(np.asarray(value).reshape(()))


def _scalar(constant: Any, dtype: Any) -> Any:
    floating = jnp.issubdtype(constant.dtype, jnp.floating)
    return jnp.asarray(constant, dtype if floating else constant.dtype)


def _run(step: _Step, arguments: list[Any], dtype: Any) -> list[Any]:
    name = step.name
    if name in SAME_ENTRIES:
        return [arguments[0]]
    if name == "split":
        return list(jnp.split(arguments[0], step.params["cuts"], axis=-1))
    if name == "slice":
        return [arguments[0][..., slice(*step.params["range"])]]
    if name == "convert_element_type":
        new = step.params["new_dtype"]
        return [arguments[0].astype(dtype if jnp.issubdtype(new, jnp.floating) else new)]
    arguments = [v.astype(dtype) if jnp.issubdtype(v.dtype, jnp.floating) else v for v in arguments]
    arguments = varying_alike(jnp.broadcast_arrays(*arguments))
    return [_primitives()[name].bind(*arguments, **step.params)]


def _check_last_axis(eqn: Any) -> None:
    """Refuse what makes another axis the last one, or moves its entries."""
    if eqn.primitive.name not in SAME_ENTRIES or eqn.invars[0].aval.size == 1:
        return
    before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    if eqn.primitive.name in ("rev", "transpose") or before[-1:] != after[-1:]:
        raise NotImplementedError(f"a {eqn.primitive.name} of the last axis")


def _cuts(eqn: Any) -> dict[str, Any]:
    """Where a split or slice cuts the last axis, whatever comes before it."""
    rank = len(eqn.invars[0].aval.shape)
    if eqn.primitive.name == "split":
        if eqn.params["axis"] != rank - 1:
            raise NotImplementedError("a split of another axis")
        sizes = [int(size) for size in eqn.params["sizes"]]
        return {"cuts": [sum(sizes[:n]) for n in range(1, len(sizes))]}
    shape, starts = eqn.invars[0].aval.shape, eqn.params["start_indices"]
    limits, strides = eqn.params["limit_indices"], eqn.params["strides"] or (1,) * rank
    if any(starts[:-1]) or tuple(limits[:-1]) != shape[:-1] or set(strides[:-1]) - {1}:
        raise NotImplementedError("a slice of another axis")
    return {"range": (starts[-1], limits[-1], strides[-1])}
