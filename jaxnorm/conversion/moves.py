"""What happens to a layer's output on its way that is linear, and to its handle with it.

A slope that is told behind a concatenation, a slice or pooling comes back to the layer as the
framework's own derivative of these operations brings it: the part that is the layer's, an average
spread over what was averaged, a maximum at the entry that was it.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm.activations import resolve_gate
from jaxnorm.conversion.trace import Step, Value

_LAYOUTS = {"reshape", "transpose", "squeeze", "expand_dims", "rev", "broadcast_in_dim"}
_PARTS = {"slice", "split"}
_POOLS = {"reduce_window_sum", "reduce_window_max"}


class Move(NamedTuple):
    """One operation, on the output or on its handle, whatever the size of the first axis."""

    name: str
    params: dict[str, Any]
    before: tuple[int, ...]  # the shape, as it was traced
    after: tuple[int, ...]
    index: int = 0  # which of its results

    @property
    def mixes(self) -> bool:
        """Whether one entry of the result depends on several."""
        return self.name in _POOLS

    @property
    def selects(self) -> bool:
        """Whether some entries may be left out."""
        return self.name in (*_PARTS, "pad", "reduce_window_max")

    def __call__(self, z: jax.Array) -> jax.Array:
        """Do it."""
        name, params = self.name, self.params
        first = z.shape[:1] if self.before[:1] == self.after[:1] else self.after[:1]
        if name == "reshape":
            return z.reshape((*first, *self.after[1:]))
        if name == "broadcast_in_dim":
            shape = (*first, *self.after[1:])
            return lax.broadcast_in_dim(z, shape, params["broadcast_dimensions"])
        if name == "transpose":
            return lax.transpose(z, params["permutation"])
        if name in ("squeeze", "expand_dims"):
            return getattr(lax, name)(z, params["dimensions"])
        if name == "rev":
            return lax.rev(z, params["dimensions"])
        if name == "slice":
            limits = _limits(params["limit_indices"], self.before, z.shape)
            return lax.slice(z, params["start_indices"], limits, params["strides"])
        if name == "split":
            return lax.split(z, params["sizes"], axis=params["axis"])[self.index]
        if name == "pad":
            return lax.pad(z, jnp.zeros((), z.dtype), params["padding_config"])
        return getattr(lax, f"{name}_p").bind(z, **params)


def move_of(step: Step, value: Value, index: int = 0) -> Move | None:
    """The move that a step is for one of its inputs; None if it is none."""
    name, params = step.name, step.eqn.params
    before, after = value.aval.shape, step.outputs[index].aval.shape
    if name == "concatenate":
        if step.inputs.count(value) > 1:
            return None
        axis, at = params["dimension"], step.inputs.index(value)
        sizes = [each.aval.shape[axis] for each in step.inputs]
        around = [(0, 0, 0)] * len(before)
        around[axis] = sum(sizes[:at]), sum(sizes[at + 1 :]), 0
        return Move("pad", {"padding_config": tuple(around)}, before, after) if axis else None
    if name not in _LAYOUTS | _PARTS | _POOLS | {"pad"} or step.inputs[0] is not value:
        return None
    if name == "slice" and _takes_samples(params, before):
        return None
    if name == "split" and params["axis"] == 0:
        return None
    return Move(name, dict(params), before, after, index)


def _takes_samples(params: dict[str, Any], shape: tuple[int, ...]) -> bool:
    return params["start_indices"][0] != 0 or params["limit_indices"][0] != shape[0]


def _limits(limits: Any, before: tuple[int, ...], now: tuple[int, ...]) -> Any:
    return now[0], *limits[1:]


class Moved:
    """Activations of parts and pools of one output, all their values in one.

    Args:
        parts: (moves, gate) of each.
        name: of them, in words.
    """

    def __init__(self, parts: tuple[tuple[tuple[Move, ...], Any], ...], name: str) -> None:
        self.parts, self.__name__ = parts, name

    def __call__(self, z: jax.Array) -> jax.Array:
        """Apply them."""
        found = []
        for moves, gate in self.parts:
            part, phi = z, resolve_gate(gate)
            for move in moves:
                part = move(part)
            found.append(phi(part).ravel())
        return jnp.concatenate(found)


def moved(moves: tuple[Move, ...], z: jax.Array, handle: jax.Array) -> jax.Array | None:
    """The handle of an output z behind the moves; None where they do not fit."""

    def run(z: jax.Array) -> jax.Array:
        for move in moves:
            z = move(z)
        return z

    if not moves:
        return handle
    try:
        return jax.jvp(run, (lax.stop_gradient(z).astype(handle.dtype),), (handle,))[1]
    except (TypeError, ValueError):  # of another shape than the one that was traced
        return None


def all_entries(shape: tuple[int, ...], ways: list[tuple[Move, ...]]) -> bool:
    """Whether these moves together leave out no entry of an array."""
    if any(not any(move.selects for move in moves) for moves in ways):
        return True
    count = math.prod(shape)
    if count > 2**22:
        return False
    seen: set[int] = set()
    with jax.ensure_compile_time_eval():
        for moves in ways:
            numbers = jnp.arange(1, count + 1).reshape(shape)
            for move in moves:
                numbers = move(numbers)
            seen.update(jnp.unique(numbers).tolist())
    return len(seen - {0}) == count
