"""Which gate the user gives to each layer, and which layers there are to choose from."""

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from jaxnorm.activations import DEFERRED, resolve_gate
from jaxnorm.conversion.decisions import LEAVE, AsFound, Deferred, Product, Several
from jaxnorm.conversion.report import Report
from jaxnorm.rule import Rule


class Choices:
    """Which gate each layer gets: from patterns, a callable, or a report.

    Args:
        gates: {pattern: gate}, a callable (path, module) -> gate, or a `Report`.

    Attributes:
        choose: (path, module) -> the gate of the layer at `path`, or `LEAVE`.
        explicit: whether the gates are the user's.
    """

    def __init__(self, gates: Any) -> None:
        self.explicit = not isinstance(gates, Report)
        self.patterns: dict[str, Any] = {}
        self.choose: Callable[[str, Any], Any]
        if isinstance(gates, Report):
            found = gates.gates
            self.choose = lambda path, module: found.get(path, LEAVE)
        elif isinstance(gates, Mapping):
            self.patterns = {
                pattern: check_choice(pattern, gate) for pattern, gate in gates.items()
            }
            self.choose = self._match
        elif callable(gates):
            self.choose = lambda path, module: check_choice(path, gates(path, module))
        else:
            raise TypeError(
                f"gates: got {gates!r}, expected 'auto', a dict {{pattern: gate}}, a callable "
                "(path, module) -> gate, or a Report"
            )

    def _match(self, path: str, module: Any) -> Any:
        matches = (gate for pattern, gate in self.patterns.items() if fnmatchcase(path, pattern))
        return next(matches, LEAVE)

    def check_used(self, paths: Iterable[str]) -> None:
        """Raise a ValueError for a pattern that matches none of the layers."""
        paths = list(paths)
        for pattern, gate in self.patterns.items():
            if gate is not LEAVE and not any(fnmatchcase(path, pattern) for path in paths):
                raise ValueError(
                    f"gates: got the pattern {pattern!r}, which matches no layer, expected one "
                    f"that matches one of {', '.join(map(repr, list(paths)[:20]))}"
                )


def check_choice(where: str, gate: Any) -> Any:
    """Return what a layer may be given, or raise an error that names the layer."""
    if gate is LEAVE or isinstance(gate, AsFound | Deferred | Product | Several):
        return gate
    try:
        if gate is DEFERRED:
            raise TypeError("gate: got DEFERRED, expected Deferred(at, gate), which says where")
        resolve_gate(gate)
    except (TypeError, ValueError) as error:
        raise type(error)(f"gates[{where!r}]: {error}") from None
    return gate


def means(gate: Deferred | Product, path: str, of: str) -> bool:
    """Whether the gate of the layer `of` names `path`, from the root or from its parent."""
    named = gate.other if isinstance(gate, Product) else gate.at
    if gate.absolute:
        return path == named
    parent, _, _ = of.rpartition("/")
    return path in (named, f"{parent}/{named}" if parent else named)


def records(rule: Rule) -> bool:
    """Whether layers with this rule record statistics, which count whatever is mapped too."""
    return rule.gradient not in ("preconditioned", "standardized")


def why_no_layer(module: Any, kinds: Iterable[type]) -> str:
    """Why a module that has a matrix of its own is no layer that could be converted."""
    if hasattr(module, "gate") and hasattr(module, "rule"):
        return "a layer of jaxnorm already"
    if isinstance(module, tuple(kinds)):
        return "a subclass with methods of its own in place of its base's"
    return "no dense, einsum or convolutional layer"


def no_layers(name: str, kinds: Iterable[str]) -> ValueError:
    """The error about a model that has nothing to convert."""
    return ValueError(
        f"{name}: got a model without a layer to convert, expected at least one of "
        f"{', '.join(kinds)}, or a subclass that computes the same"
    )
