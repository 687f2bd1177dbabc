"""Handles of converted nnx layers: the gates that say where they go, and who hands them over."""

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxnorm.conversion.alterations import warn
from jaxnorm.conversion.decisions import Deferred, Product
from jaxnorm.conversion.report import gate_name
from jaxnorm.conversion.wiring import Handover, untold
from jaxnorm.nnx.base import ToldElsewhere
from jaxnorm.nnx.modules import MARK
from jaxnorm.nnx.registry import KINDS, kind_of

REMEDY = "call jaxnorm.nnx.revert(model) and jaxnorm.nnx.convert(model, ...) again"


@dataclass(frozen=True)
class Bound(ToldElsewhere):
    """The gate of a converted layer that is told it elsewhere: a choice, its modules looked up.

    Attributes:
        choice: what the layer was given.
        path: of the layer.
        around: the module around all of them, the same in no other model, or "": when it returns,
            nobody waits any more. With `applied` the module that tells the gate.
        pair: of a `Product`, the same for both layers.
        first: of such a pair, whether the layer is called before the other.
    """

    choice: Deferred | Product
    path: str
    around: str
    pair: str = ""
    first: bool = False

    def __str__(self) -> str:
        return gate_name(self.choice)

    def handed_over(self, out: Any) -> Any:
        """The z of (z, handle), the handle on the way to where the activation is."""
        (z, handle), handover, choice = out, _LOCAL.handover, self.choice
        waiting = _Waits(self.around, self.pair, self.path)
        if isinstance(choice, Product):
            return handover.tell_product(
                waiting, z, handle, choice, lambda each: each.pair == self.pair and not self.first
            )
        # Outside of the module nobody would take the handle, and it would outlive its trace.
        if not choice.applied or self.around in _LOCAL.around:
            handover.wait(waiting, z, handle, choice)
        return z


class _Waits(NamedTuple):
    """Who waits: a layer, in a module."""

    around: str
    pair: str
    path: str


class _Local(threading.local):
    """Handles on their way, and the modules that are running and will tell some, in each thread."""

    def __init__(self) -> None:
        self.handover, self.around = Handover(), []
        self.reported: set[_Waits] = set()


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
    """Any module around converted layers, whose output tells its gate to those that wait for it."""

    def __call__(self, *args, **kwargs):
        place, handover = getattr(self, MARK), _LOCAL.handover
        _LOCAL.around.append(place)
        try:
            out = base.__call__(self, *args, **kwargs)
            out = handover.tell_returned(out, lambda gate, each: each.around == place)
            left = handover.end(lambda each: each.around == place)
            left = {each: gate for each, gate in left.items() if each not in _LOCAL.reported}
            _LOCAL.reported.update(left)
            warn((untold(each.path, gate) for each, gate in left.items()), REMEDY)
        finally:  # after an error nothing waits either
            _LOCAL.around.pop()
            handover.end(lambda each: each.around == place)
        return out

    return _subclass(converted_module, base, __call__)


@functools.cache
def converted_layer(base: type) -> type:
    """Our class for a layer of Flax; one made for it, if it is a subclass."""
    ours = KINDS[kind_of(base)]  # type: ignore[index]
    return ours if base in KINDS else _subclass(converted_layer, base, ours.__call__, (ours, base))


def _subclass(
    make: Callable[[type], type], base: Any, call: Callable[..., Any], bases: tuple[type, ...] = ()
) -> type:
    """make(base), whose objects can be pickled: no module has that class under its name."""

    def __reduce_ex__(self, protocol):
        _, (_, *arguments), *state = base.__reduce_ex__(self, max(protocol, 2))
        return _new, (make, base, *arguments), *state

    content = {"__call__": call, "__reduce_ex__": __reduce_ex__, "_neuronwise_base": base}
    content |= {"__doc__": base.__doc__, "__module__": base.__module__}
    return type(base.__name__, bases or (base,), content)


def _new(make: Callable[[type], type], base: type, *arguments: Any) -> Any:
    kind = make(base)
    return kind.__new__(kind, *arguments)
