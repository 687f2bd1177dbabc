"""Handles of converted nnx layers: the gates that say where they go, and who hands them over."""

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxnorm.activations import DEFERRED
from jaxnorm.conversion.report import Deferred, Product, gate_name
from jaxnorm.conversion.wiring import Handover


@dataclass(frozen=True)
class Half:
    """The gate of a converted layer that is one of the two of a gated unit.

    Attributes:
        product: what it was given.
        unit: the same for both, and for no other model.
        first: whether it is called before the other.
    """

    product: Product
    unit: str
    first: bool

    def __str__(self) -> str:
        return gate_name(self.product)


@dataclass(frozen=True)
class Inside:
    """The gate of a converted layer that is deferred to what a module around it returns.

    Attributes:
        deferred: what it was given.
        around: the same for that module, and for no other model.
        path: of the layer.
    """

    deferred: Deferred
    around: str
    path: str

    def __str__(self) -> str:
        return gate_name(self.deferred)


#: Handles on their way from one layer to another, in each thread.
_LOCAL = threading.local()


def _handover() -> Handover:
    if not hasattr(_LOCAL, "handover"):
        _LOCAL.handover, _LOCAL.around = Handover(), []
    return _LOCAL.handover


def gate_of(layer: Any) -> Any:
    """The gate that the functions know: a layer that waits has an deferred one."""
    waits = isinstance(layer.gate, Deferred | Half | Inside)
    return DEFERRED if waits else layer.gate


def handed_over(layer: Any, out: Any) -> Any:
    """The output of a layer, its handle on the way to where the activation is."""
    if isinstance(layer.gate, Deferred):
        z, handle = out
        _handover().deferred("", z, handle, layer.gate)
        return z
    if isinstance(layer.gate, Inside):
        z, handle = out
        where = f"{layer.gate.around}\n{layer.gate.path}"
        handover = _handover()
        # Outside of that module nobody would take the handle, and it would outlive its trace.
        if layer.gate.around in _LOCAL.around:
            handover.applied(where, z, handle, layer.gate.deferred)
        return z
    if isinstance(layer.gate, Half):
        z, handle = out
        unit, first = layer.gate.unit, layer.gate.first
        return _handover().product(
            unit, z, handle, layer.gate.product, lambda waiting: waiting == unit and not first
        )
    return out


@functools.cache
def telling(base: type) -> type:
    """A normalization of Flax that tells its output."""

    def __call__(self, x, *args, **kwargs):
        u = base.__call__(self, x, *args, **kwargs)
        return _handover().normalized(x, u, lambda gate, path: True)

    own = {"__call__": __call__, "__doc__": base.__doc__, "__module__": __name__}
    return type(base.__name__, (base,), {**own, "__reduce_ex__": _reduced(telling, base)})


@functools.cache
def returning(base: type) -> type:
    """Any module, whose output is deferred."""

    def __call__(self, *args, **kwargs):
        handover, around, out = _handover(), self._converted, None
        _LOCAL.around.append(around)
        try:
            out = base.__call__(self, *args, **kwargs)
        finally:  # what waits is taken, or dropped after an error
            _LOCAL.around.pop()
            out = handover.returned(out, lambda gate, path: path.split("\n")[0] == around)
        return out

    own = {"__call__": __call__, "__doc__": base.__doc__, "__module__": base.__module__}
    own |= {"_base": base, "__reduce_ex__": _reduced(returning, base)}
    return type(base.__name__, (base,), own)


def _reduced(make: Callable[[type], type], base: Any) -> Callable[..., Any]:
    """How objects of make(base) are pickled: no module has that class under its name."""

    def __reduce_ex__(self, protocol):
        _, (_, *arguments), *state = base.__reduce_ex__(self, max(protocol, 2))
        return _new, (make, base, *arguments), *state

    return __reduce_ex__


def _new(make: Callable[[type], type], base: type, *arguments: Any) -> Any:
    kind = make(base)
    return kind.__new__(kind, *arguments)
