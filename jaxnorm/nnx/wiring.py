"""Handles of converted nnx layers: the gates that say where they go, and who hands them over."""

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxnorm.conversion.decisions import Deferred, Product
from jaxnorm.conversion.report import gate_name
from jaxnorm.conversion.wiring import Handover
from jaxnorm.nnx.base import ToldElsewhere


@dataclass(frozen=True)
class Bound(ToldElsewhere):
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

    def handed_over(self, out: Any) -> Any:
        """The z of (z, handle), the handle on the way to where the activation is."""
        (z, handle), handover, choice = out, _LOCAL.handover, self.choice
        if isinstance(choice, Product):
            return handover.tell_product(
                self.place, z, handle, choice, lambda other: other == self.place and not self.first
            )
        # Outside of the module nobody would take the handle, and it would outlive its trace.
        if not choice.applied or self.place in _LOCAL.around:
            handover.wait((self.place, self.path), z, handle, choice)
        return z


class _Local(threading.local):
    """Handles on their way, and the modules that are running and will tell some, in each thread."""

    def __init__(self) -> None:
        self.handover, self.around = Handover(), []


_LOCAL = _Local()


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
