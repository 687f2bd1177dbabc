"""Handles of converted nnx layers: the gates that say where they go, and who hands them over."""

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxnorm.activations import DEFERRED
from jaxnorm.conversion.decisions import Deferred, Product
from jaxnorm.conversion.report import gate_name
from jaxnorm.conversion.wiring import Handover


@dataclass(frozen=True)
class Bound:
    """The gate of a converted layer that is told it elsewhere: a choice, its modules looked up.

    Attributes:
        choice: what the layer was given.
        path: of the layer.
        place: where its handle is going, the same in no other model: the module that tells it, or
            the pair of layers that tell one another.
        first: of such a pair, whether the layer is called before the other.
    """

    choice: Deferred | Product
    path: str
    place: str
    first: bool = False

    def __str__(self) -> str:
        return gate_name(self.choice)


class _Local(threading.local):
    """Handles on their way, and the modules that are running and will tell some, in each thread."""

    def __init__(self) -> None:
        self.handover, self.around = Handover(), []


_LOCAL = _Local()


def gate_of(layer: Any) -> Any:
    """The gate that the functions know."""
    return DEFERRED if isinstance(layer.gate, Bound) else layer.gate


def handed_over(layer: Any, out: Any) -> Any:
    """The output of a layer, its handle on the way to where the activation is."""
    gate = layer.gate
    if not isinstance(gate, Bound):
        return out
    (z, handle), handover = out, _LOCAL.handover
    if isinstance(gate.choice, Product):
        return handover.tell_product(
            gate.place, z, handle, gate.choice, lambda other: other == gate.place and not gate.first
        )
    # Outside of the module nobody would take the handle, and it would outlive its trace.
    if not gate.choice.applied or gate.place in _LOCAL.around:
        handover.wait((gate.place, gate.path), z, handle, gate.choice)
    return z


@functools.cache
def converted_normalizer(base: type) -> type:
    """A normalization of Flax whose output tells its gate to the layer before it."""

    def __call__(self, x, *args, **kwargs):
        u = base.__call__(self, x, *args, **kwargs)
        return _LOCAL.handover.tell_normalized(x, u, lambda gate, path: True)

    return _subclass(converted_normalizer, base, __call__)


@functools.cache
def converted_module(base: type) -> type:
    """Any module, whose output tells its gate to layers inside."""

    def __call__(self, *args, **kwargs):
        place, out = self._converted, None
        _LOCAL.around.append(place)
        try:
            out = base.__call__(self, *args, **kwargs)
        finally:  # what waits is taken, or dropped after an error
            _LOCAL.around.pop()
            out = _LOCAL.handover.tell_returned(out, lambda gate, path: path[0] == place)
        return out

    return _subclass(converted_module, base, __call__)


def _subclass(make: Callable[[type], type], base: Any, call: Callable[..., Any]) -> type:
    """make(base), whose objects can be pickled: no module has that class under its name."""

    def __reduce_ex__(self, protocol):
        _, (_, *arguments), *state = base.__reduce_ex__(self, max(protocol, 2))
        return _new, (make, base, *arguments), *state

    content = {"__call__": call, "__reduce_ex__": __reduce_ex__, "_neuronwise_base": base}
    content |= {"__doc__": base.__doc__, "__module__": base.__module__}
    return type(base.__name__, (base,), content)


def _new(make: Callable[[type], type], base: type, *arguments: Any) -> Any:
    kind = make(base)
    return kind.__new__(kind, *arguments)
