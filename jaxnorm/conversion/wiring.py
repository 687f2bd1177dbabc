"""Handles on their way from the layer that made them to the place that knows the slope.

Flax layers return z and nothing else, so the handle of a layer whose activation is told later waits
here. It is only ever handed over within one trace: a value of another one must not be touched.
"""

import weakref
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm.activations import gate_slope, resolve_gate
from jaxnorm.backward.deferred import tell_gate
from jaxnorm.compat import get_opaque_trace_state
from jaxnorm.conversion.alterations import Problem
from jaxnorm.conversion.decisions import SLOPE_OF_VALUE, Deferred, Product
from jaxnorm.conversion.moves import moved
from jaxnorm.precision import at_least_float32


class _Waiting(NamedTuple):
    """The output of a layer and its handle."""

    z: Any
    handle: Any
    gate: Any
    trace: Any
    path: Any


class Handover:
    """The handles that wait, of one call of a model (or of one thread).

    A layer is known by its path, or by anything else that is no other layer's.
    """

    def __init__(self) -> None:
        self._normalized: dict[int, _Waiting] = {}
        self._products: dict[Hashable, _Waiting] = {}
        self._returned: dict[Hashable, _Waiting] = {}
        self._moved: list[_Waiting] = []
        self._untold: dict[tuple[Any, str], Any] = {}  # (path, where it is told) -> gate

    def wait(self, path: Any, z: Any, handle: Any, gate: Deferred) -> None:
        """Let the handle of a layer wait for what its gate names."""
        self._untold[path, gate.at] = gate
        if gate.moves is not None:
            self._moved.append(_Waiting(z, handle, gate, _trace(), path))
            return
        if gate.applied:
            self._returned[path] = _Waiting(z.shape, handle, gate, _trace(), path)
            return
        key, waiting = id(z), self._normalized

        def forget(_):
            waiting.pop(key, None)

        # Weakly: what nobody normalizes must not outlive its trace.
        waiting[key] = _Waiting(weakref.ref(z, forget), handle, gate, _trace(), path)

    def tell_normalized(self, x: Any, u: Any, fits: Callable[[Any, Any], bool]) -> Any:
        """u, the normalized x; its gate is told if x is the output of a layer that waits for it.

        Or if it was found to be made of one, see `jaxnorm.conversion.moves`.
        """
        for each in [each for each in self._moved if fits(each.gate, each.path)]:
            handle = moved(each.gate.moves, each.z, each.handle) if each.trace == _trace() else None
            if handle is not None and _shaped(u, handle.shape):
                self._moved.remove(each)
                self._untold.pop((each.path, each.gate.at), None)
                u = tell_gate(u, handle, each.gate.gate)
        found = self._normalized.get(id(x))
        if found is None or found.z() is not x or found.trace != _trace():
            return u
        if not fits(found.gate, found.path) or not _shaped(u, x.shape):
            return u
        self._normalized.pop(id(x), None)
        self._untold.pop((found.path, found.gate.at), None)
        return tell_gate(u, found.handle, found.gate.gate)

    def tell_returned(self, out: Any, fits: Callable[[Any, Any], bool]) -> Any:
        """What a module returns; its slope is told to every layer that waits for it."""
        for each in [each for each in self._returned.values() if fits(each.gate, each.path)]:
            del self._returned[each.path]
            if each.trace == _trace() and _shaped(out, each.z):
                self._untold.pop((each.path, each.gate.at), None)
                slope = SLOPE_OF_VALUE[each.gate.gate](lax.stop_gradient(out))
                out = tell_gate(out, each.handle, slope=slope)
        return out

    def tell_product(
        self, path: Any, z: Any, handle: Any, gate: Product, partner: Callable[[Any], bool]
    ) -> Any:
        """Z of one layer of a gated unit; the slopes are told to both as soon as both are there."""
        name = next((name for name in self._products if partner(name)), None)
        other = None if name is None else self._products.pop(name)
        if other is None or other.trace != _trace() or other.z.shape != z.shape:
            # Strongly: the activation is all that the model itself holds of it.
            self._products[path] = _Waiting(z, handle, gate, _trace(), path)
            self._untold[path, ""] = gate
            return z
        self._untold.pop((other.path, ""), None)
        slopes = _product_slopes(gate.gate, other.gate.gate, z, other.z)
        # Both handles on this output: their gradients are the slopes, whatever it is used for.
        z = tell_gate(z, other.handle, slope=slopes[1])
        return tell_gate(z, handle, slope=slopes[0])

    def end(self, ended: Callable[[Any], bool] = lambda path: True) -> dict[Any, Any]:
        """Path -> gate of the layers that nobody has told anything; nobody waits any more."""
        every: Any = (self._normalized, self._products, self._returned)
        for waiting in every:
            for key in [key for key, each in waiting.items() if ended(each.path)]:
                waiting.pop(key, None)
        self._moved = [each for each in self._moved if not ended(each.path)]
        left = [key for key in self._untold if ended(key[0])]
        return {key[0]: self._untold.pop(key) for key in left}


def untold(path: str, gate: Deferred | Product) -> Problem:
    """The problem of a layer that waited for nothing."""
    expected = f"it as soon as {_named(gate)} is called"
    if isinstance(gate, Deferred):
        expected = f"it from {_named(gate)}"
    return Problem(f"gate of {path!r}", "no word of what its activation sees", expected)


def _named(gate: Deferred | Product) -> str:
    return repr(gate.other if isinstance(gate, Product) else gate.at)


def _product_slopes(gate: Any, other_gate: Any, z: Any, other: Any) -> tuple[Any, Any]:
    """The derivatives of gate(z) * other_gate(other) with respect to z and to other."""
    (a, a_slope), (b, b_slope) = _value_and_slope(gate, z), _value_and_slope(other_gate, other)
    return jnp.multiply(a_slope, b), jnp.multiply(b_slope, a)


def _value_and_slope(gate: Any, z: Any) -> tuple[Any, Any]:
    z = lax.stop_gradient(z).astype(at_least_float32(z.dtype))
    phi, slope = resolve_gate(gate), gate_slope(gate, z)
    return (z if phi is None else phi(z)), (1 if slope is None else slope)


def _shaped(value: Any, shape: tuple[int, ...]) -> bool:
    return isinstance(value, jax.Array) and value.shape == shape


def _trace() -> Any:
    return get_opaque_trace_state(convention="flax")
