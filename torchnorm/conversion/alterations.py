"""What was done to a model after it was converted: put right where it can be, else told once.

Modules are found by their names, as somebody who replaces them finds them. Nothing here holds a
module, but for the one that is a layer's gate, so that a copied or pickled model has its own.
"""

import types
import warnings
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from torchnorm.activations import DEFERRED, without_hooks
from torchnorm.conversion.untouched import untouched
from torchnorm.modules.base import Neuronwise
from torchnorm.modules.hosting import PRODUCTS
from torchnorm.modules.registry import MARK, is_layer

_REMEDY = (
    "if the model was changed, call torchnorm.revert(model) and torchnorm.convert(model, "
    "example_input) again"
)


def warn(problems: list[tuple[str, str, str]]) -> None:
    """One warning of all problems: (of what, what was got, what was expected)."""
    if problems:
        shown = [f"{of}: got {got}, expected {right}" for of, got, right in problems]
        more = [f"and {len(shown) - 3} more"] if len(shown) > 3 else []
        warnings.warn("; ".join([*shown[:3], *more, _REMEDY]), UserWarning, stacklevel=1)


def at(model: nn.Module, path: tuple[str, ...]) -> nn.Module | None:
    """The module of a name, or None.

    What somebody has wrapped since (checkpoints, torch.compile, FSDP) is found within the wrapper.
    """
    found: nn.Module | None = model
    for name in path:
        while name not in found._modules:
            if len(found._modules) != 1:
                return None
            found = next(iter(found._modules.values()))
            if found is None:
                return None
        found = found._modules[name]
        if found is None:
            return None
    return found


def path_of(name: str) -> tuple[str, ...]:
    """A module's name, in parts."""
    return tuple(name.split(".")) if name else ()


def converted(model: nn.Module, name: str, *, deferred: bool = False) -> bool:
    """Whether there still is a converted layer of that name."""
    path = path_of(name)
    layer = at(model, path)
    if layer is None:  # a parameter of a module
        owner = at(model, path[:-1])
        layer = getattr(owner, "__dict__", {}).get(PRODUCTS, {}).get(path[-1])
    elif MARK not in vars(layer):
        return False
    return layer is not None and (not deferred or vars(layer).get("gate") is DEFERRED)


@dataclass(eq=False)
class Witness:
    """The module, or the function that a module holds, from which a gate was taken.

    Attributes:
        name: of the module.
        attribute: of that module, if it holds the function there.
        kind: the module's class, or the function.
        gate: the module itself, if it is the gate, so that the layer sees what is done to it.
        layers: whose gate it is.
    """

    name: str
    attribute: str
    kind: Any
    gate: nn.Module | None
    layers: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    values: list[float] | None = None  # at some points
    shown: str = ""

    def __post_init__(self) -> None:
        self.path = path_of(self.name)

    def remember(self, found: Any) -> None:
        """Take down how it is now."""
        self.settings = {} if self.attribute else _settings(found)
        self.values, self.shown = _values(found), _shown(found)

    def altered(self, model: nn.Module) -> str | None:
        """What is in its place, if that does something else; None if not."""
        found: Any = at(model, self.path)
        if self.attribute:
            found = getattr(found, "__dict__", {}).get(self.attribute)
            same = found is self.kind
        elif self.gate is not None:
            same = found is self.gate
        else:
            same = type(found) is self.kind
            if same:
                now = found.__dict__
                for name, value in self.settings.items():
                    same = same and now.get(name) == value
        return None if same or self._accepts(found) else _shown(found)

    def _accepts(self, found: Any) -> bool:
        """Whether it does the same; then it is what is looked for from now on."""
        if (
            isinstance(found, nn.Module)
            and len(found._modules) == 1
            and type(found) is not self.kind
        ):
            (name,) = found._modules  # perhaps it was wrapped
            within = found._modules[name]
            if within is self.gate if self.gate is not None else type(within) is self.kind:
                self.path = (*self.path, name)
                return True
        if self.kind is nn.Identity and isinstance(found, nn.modules.dropout._DropoutNd):
            return True
        learns = isinstance(found, nn.Module) and next(found.parameters(), None) is not None
        if self.values is None or (learns and self.gate is not None):
            return False
        values = _values(found)
        if values is None:  # where nothing was, a normalization is no activation
            return self.kind is nn.Identity
        found_values, before = map(torch.tensor, (values, self.values))
        if not torch.allclose(found_values, before, rtol=1e-5, equal_nan=True):
            return False
        self.kind = found if self.attribute else type(found)
        self.gate = None if self.gate is None else found
        # What was changed, a counter perhaps, means nothing.
        self.settings = {k: v for k, v in self.settings.items() if vars(found).get(k) == v}
        return True


_PLAIN = (bool, int, float, str, types.NoneType, types.FunctionType, types.BuiltinFunctionType)


def _settings(module: nn.Module) -> dict[str, Any]:
    """The attributes that say what a module does."""
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, _PLAIN)
        and not name.startswith("_")
        and name not in ("training", "inplace")
    }


def _values(phi: Any) -> list[float] | None:
    """What a function makes of some points; None if it cannot be told from them."""
    if not callable(phi):
        return None
    function: Callable = without_hooks(phi)
    device = next(phi.parameters(), torch.zeros(())).device if isinstance(phi, nn.Module) else None
    points = torch.linspace(-6, 7, 53, dtype=torch.float64, device=device)
    for dtype in (torch.float64, torch.float32):
        try:
            with torch.no_grad(), untouched(phi):
                torch.default_generator.manual_seed(0)
                values = function(points.to(dtype, copy=True))
            if values.shape == points.shape:
                return values.tolist()
        except Exception:
            continue
    return None


def _shown(found: Any) -> str:
    if isinstance(found, nn.Module):
        try:
            text = repr(found)
        except Exception:  # of a class that was changed in place
            text = "\n"
        return text if len(text) <= 60 and "\n" not in text else type(found).__name__
    return "nothing" if found is None else getattr(found, "__name__", repr(found))


@dataclass(eq=False)
class Wire:
    """One hook of ours, and the module that it is to hang on.

    Attributes:
        name: of the module.
        hook: the hook.
        before: whether it is a forward pre-hook, which takes keyword arguments.
        layers: for whom.
    """

    name: str
    hook: Any
    before: bool
    layers: list[str]

    def __post_init__(self) -> None:
        self.path = path_of(self.name)

    def hangs_on(self, module: nn.Module) -> bool:
        """Whether the hook is there."""
        return (
            self.hook
            in (module._forward_pre_hooks if self.before else module._forward_hooks).values()
        )

    def hang(self, module: nn.Module) -> None:
        """Hang it there: before the model's hooks, which expect what PyTorch returns."""
        if self.before:
            module.register_forward_pre_hook(self.hook, prepend=True, with_kwargs=True)
        else:
            module.register_forward_hook(self.hook, prepend=True)


@dataclass(eq=False)
class Alterations:
    """What there is to look after in a model."""

    wires: list[Wire] = field(default_factory=list)
    witnesses: dict[tuple[str, str], Witness] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)  # layers that it has been said of
    layers: dict[str, Any] = field(default_factory=dict)  # weak references to those converted

    def __getstate__(self) -> dict:
        return {**vars(self), "layers": dict.fromkeys(self.layers)}

    def add(self, witnesses: Iterable[Witness], layer: str) -> None:
        """Look after what a layer's gate was taken from."""
        for witness in witnesses:
            self.witnesses.setdefault((witness.name, witness.attribute), witness).layers.append(
                layer
            )

    def look(self, model: nn.Module) -> None:
        """Hang up again what was replaced, and tell what else has changed."""
        found = []
        for key, witness in list(self.witnesses.items()):
            got = witness.altered(model)
            if got is None:
                continue
            del self.witnesses[key]
            for layer in witness.layers:
                if converted(model, layer):
                    got_at = f"{got} at {_place(witness)}"
                    found.append((f"gate of {layer!r}", got_at, witness.shown))
                    self.changed.add(layer)
        for name, reference in list(self.layers.items()):
            layer = at(model, path_of(name))
            if reference is None or reference() is not layer:
                found += self._replaced(name, reference, layer)
        for wire in self.wires:
            module = at(model, wire.path)
            if module is None or not wire.hangs_on(module):
                self._hang(model, wire, module)
        warn(found)

    def _replaced(self, name: str, reference: Any, found: nn.Module | None) -> list:
        """Whether a converted layer was replaced by another one that is not."""
        if found is not None and MARK in vars(found):
            self.layers[name] = weakref.ref(found)
            return []
        del self.layers[name]
        before = None if reference is None else reference()
        if found is None or (before is None and reference is None):
            return []
        parts = [p for p in found.modules() if is_layer(p) and not isinstance(p, Neuronwise)]
        wrapped = any(part is before for part in found.modules())
        if not parts or wrapped:
            return []
        self.changed.add(name)
        return [(f"layer {name!r}", f"{_shown(found)}, which is plain", "the converted one")]

    def _hang(self, model: nn.Module, wire: Wire, module: nn.Module | None) -> None:
        deferred = [
            layer
            for layer in wire.layers
            if layer not in self.changed and converted(model, layer, deferred=True)
        ]
        moved = [name for name, each in model.named_modules() if wire.hangs_on(each)]
        if moved:  # to another name
            wire.name = moved[0]
            wire.path = path_of(wire.name)
        elif module is not None and deferred:
            # Whatever has taken its place: what it returns, or is given, goes to the activation.
            wire.hang(module)
        else:
            self.wires = [each for each in self.wires if each is not wire]


def _place(witness: Witness) -> str:
    parts = [part for part in (witness.name, witness.attribute) if part]
    return repr(".".join(parts))
