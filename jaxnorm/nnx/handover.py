"""Probes of converted nnx layers: the gates that say where they go, and who hands them over."""

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxnorm.conversion.handover import Handover
from jaxnorm.conversion.report import Observed, Product, gate_name
from jaxnorm.gates import OBSERVED


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
    """The gate of a converted layer that is observed at what a module around it returns.

    Attributes:
        observed: what it was given.
        around: the same for that module, and for no other model.
        path: of the layer.
    """

    observed: Observed
    around: str
    path: str

    def __str__(self) -> str:
        return gate_name(self.observed)


#: Probes on their way from one layer to another, in each thread.
_LOCAL = threading.local()


def _handover() -> Handover:
    if not hasattr(_LOCAL, "handover"):
        _LOCAL.handover, _LOCAL.around = Handover(), []
    return _LOCAL.handover


def gate_of(layer: Any) -> Any:
    """The gate that the functions know: a layer that waits has an observed one."""
    waits = isinstance(layer.gate, Observed | Half | Inside)
    return OBSERVED if waits else layer.gate


def handed_over(layer: Any, out: Any) -> Any:
    """The output of a layer, its probe on the way to where the activation is."""
    if isinstance(layer.gate, Observed):
        z, probe = out
        _handover().observed("", z, probe, layer.gate)
        return z
    if isinstance(layer.gate, Inside):
        z, probe = out
        where = f"{layer.gate.around}\n{layer.gate.path}"
        handover = _handover()
        # Outside of that module nobody would take the probe, and it would outlive its trace.
        if layer.gate.around in _LOCAL.around:
            handover.applied(where, z, probe, layer.gate.observed)
        return z
    if isinstance(layer.gate, Half):
        z, probe = out
        unit, first = layer.gate.unit, layer.gate.first
        return _handover().product(
            unit, z, probe, layer.gate.product, lambda waiting: waiting == unit and not first
        )
    return out


@functools.cache
def observing(host: type) -> type:
    """A normalisation of the host that observes its output."""

    def __call__(self, x, *args, **kwargs):
        u = host.__call__(self, x, *args, **kwargs)
        return _handover().normalised(x, u, lambda gate, path: True)

    own = {"__call__": __call__, "__doc__": host.__doc__, "__module__": __name__}
    return type(host.__name__, (host,), {**own, "__reduce_ex__": _reduced(observing, host)})


@functools.cache
def returning(host: type) -> type:
    """Any module, whose output is observed."""

    def __call__(self, *args, **kwargs):
        handover, around, out = _handover(), self._converted, None
        _LOCAL.around.append(around)
        try:
            out = host.__call__(self, *args, **kwargs)
        finally:  # what waits is taken, or dropped after an error
            _LOCAL.around.pop()
            out = handover.returned(out, lambda gate, path: path.split("\n")[0] == around)
        return out

    own = {"__call__": __call__, "__doc__": host.__doc__, "__module__": host.__module__}
    own |= {"_host": host, "__reduce_ex__": _reduced(returning, host)}
    return type(host.__name__, (host,), own)


def _reduced(make: Callable[[type], type], host: Any) -> Callable[..., Any]:
    """How objects of make(host) are pickled: no module has that class under its name."""

    def __reduce_ex__(self, protocol):
        _, (_, *arguments), *state = host.__reduce_ex__(self, max(protocol, 2))
        return _new, (make, host, *arguments), *state

    return __reduce_ex__


def _new(make: Callable[[type], type], host: type, *arguments: Any) -> Any:
    kind = make(host)
    return kind.__new__(kind, *arguments)
