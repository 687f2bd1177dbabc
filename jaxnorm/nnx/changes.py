"""What was changed in a converted nnx model since its gates were found."""

from collections.abc import Callable
from typing import Any

from flax import nnx

from jaxnorm.conversion.alterations import Problem, warn
from jaxnorm.conversion.decisions import Deferred, Product
from jaxnorm.conversion.report import gate_name
from jaxnorm.nnx.modules import FOUND, MARK, modules
from jaxnorm.nnx.registry import KINDS
from jaxnorm.nnx.trace import follow_layers
from jaxnorm.nnx.wiring import REMEDY, Bound


def warn_of_changes(model: Any, args: tuple, call: Callable[..., Any] | None) -> None:
    """Warn of converted layers whose activation is another one than was found."""
    found = {
        path: layer
        for path, (layer, _) in modules(model).items()
        if getattr(layer, MARK, None) == FOUND
    }
    if not found:
        return
    now, _ = follow_layers(model, args, call)
    problems = []
    for path, layer in found.items():
        old = _shown(layer.gate.choice if isinstance(layer.gate, Bound) else layer.gate)
        new = _shown(now[path].gate)
        if old != new:
            problems.append(Problem(f"gate of {path!r}", f"{new} after it", old))
    warn(problems, REMEDY)


class Witness:
    """What a model consisted of when its optimizer was made: its modules and its functions."""

    def __init__(self, model: Any) -> None:
        self.parts = _parts(model)
        self.reported: set[str] = set()

    def look(self, model: Any) -> None:
        """Warn, once, of each that is another one now."""
        now, problems = _parts(model), []
        for place, was in self.parts.items():
            got = now.get(place)
            if got is not was and got != was and place not in self.reported:
                self.reported.add(place)
                what = "nothing" if got is None else _name(got)
                expected = f"{_name(was)}, as when the optimizer was made"
                problems.append(Problem(f"model at {place!r}", what, expected))
        warn(problems, REMEDY)


def _parts(model: Any) -> dict[str, Any]:
    """Path -> class of a module, or a function in one that is not of Flax."""
    parts: dict[str, Any] = {}
    for path, (module, _) in modules(model).items():
        parts[path] = type(module)
        if isinstance(module, tuple(KINDS)):
            continue  # initializers, and products of their own
        for name, value in vars(module).items():
            if callable(value) and not isinstance(value, nnx.Pytree | nnx.Variable):
                parts[f"{path}/{name}" if path else name] = value
    return parts


def _name(part: Any) -> str:
    name = getattr(part, "__qualname__", None) or repr(part)
    return f"{part.__module__}.{name}" if isinstance(part, type) else name


def _shown(gate: Any) -> str:
    """A gate and where it is, in words."""
    place = ""
    if isinstance(gate, Deferred | Product):
        place = f" at {gate.at!r}" if isinstance(gate, Deferred) else f" with {gate.other!r}"
    return f"{gate_name(gate)}{place}"
