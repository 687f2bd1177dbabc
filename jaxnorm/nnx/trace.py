"""A traced copy of an nnx model, its layers and normalizations marked."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx

from jaxnorm.conversion.report import LEAVE, Report, Row
from jaxnorm.conversion.search import search
from jaxnorm.conversion.trace import Layer, mark, trace

LAYERS: tuple[type, ...] = (nnx.Linear, nnx.LinearGeneral, nnx.Einsum, nnx.Conv, nnx.ConvTranspose)
NORMALIZERS: tuple[type, ...] = (
    nnx.BatchNorm,
    nnx.LayerNorm,
    nnx.GroupNorm,
    nnx.RMSNorm,
    nnx.InstanceNorm,
)


def become(module: Any, kind: type) -> None:
    """Change the class and nothing else: nnx would note it down as an attribute."""
    object.__setattr__(module, "__class__", kind)


def modules(model: Any) -> dict[str, tuple[Any, list[str]]]:
    """Path -> (module, other paths of the same object), depth first."""
    found: dict[int, tuple[str, Any, list[str]]] = {}

    def visit(node, path):
        name = "/".join(map(str, path))
        if id(node) in found:
            found[id(node)][2].append(name)
            return
        if isinstance(node, nnx.Module):
            found[id(node)] = (name, node, [])
        for key, child in _children(node):
            visit(child, (*path, key))

    visit(model, ())
    return {name: (node, also) for name, node, also in found.values()}


def _children(node) -> list[tuple[Any, Any]]:
    if isinstance(node, nnx.Variable):
        return []
    if isinstance(node, dict):
        return list(node.items())
    if isinstance(node, list | tuple):
        return list(enumerate(node))
    if isinstance(node, nnx.List | nnx.Dict | nnx.Pytree):
        return [(key, child) for key, child in nnx.iter_children(node)]
    return []


class _Marks:
    """What a traced copy of a model reports to."""

    def __init__(self) -> None:
        self.layers: list[Layer] = []
        self.normalizers: list[str] = []
        self.modules: list[str] = []


def _marking_layer(base: type) -> type:
    def __call__(self, *args, **kwargs):
        z = base.__call__(self, *args, **kwargs)
        marks, number = self._marks, len(self._marks.layers)
        kernel = mark("kernel", number, self.kernel[...])
        neurons = math.prod(jnp.shape(self.bias[...])) if self.bias is not None else 1
        if base in (nnx.Linear, nnx.Conv, nnx.ConvTranspose):
            neurons = self.out_features
        what = (base.__name__, jnp.shape(z), neurons, kernel.ndim, None)
        marks.layers.append(Layer(self._path, *what))
        return mark("layer", number, z)

    return type(base.__name__, (base,), {"__call__": __call__})


def _marking_normalizer(base: type) -> type:
    def __call__(self, x, *args, **kwargs):
        number = len(self._marks.normalizers)
        self._marks.normalizers.append(self._path)
        u = base.__call__(self, mark("in", number, x), *args, **kwargs)
        return mark("out", number, u)

    return type(base.__name__, (base,), {"__call__": __call__})


@functools.cache
def _marking_module(base: type) -> type:
    def __call__(self, *args, **kwargs):
        out = base.__call__(self, *args, **kwargs)
        if not hasattr(out, "dtype"):
            return out
        self._marks.modules.append(self._path)
        return mark("returned", len(self._marks.modules) - 1, out)

    return type(base.__name__, (base,), {"__call__": __call__})


_MARKING = {base: _marking_layer(base) for base in LAYERS}
_MARKING |= {base: _marking_normalizer(base) for base in NORMALIZERS}


def follow_layers(
    model: Any, example_input: Any, call: Callable[..., Any] | None
) -> tuple[Report, dict[str, int]]:
    """(what follows each layer, path -> when it is called) of a copy of the model."""
    marks = _Marks()
    graph, state = nnx.split(model)
    arguments = example_input if isinstance(example_input, tuple) else (example_input,)

    def run(state, *arguments):
        copy = nnx.merge(graph, state)
        for path, (module, _) in modules(copy).items():
            kind = _MARKING.get(type(module))
            if kind is None and callable(module) and not isinstance(module, LAYERS + NORMALIZERS):
                kind = _marking_module(type(module))
            if kind is not None:
                become(module, kind)
                module._marks, module._path = marks, path
        return copy(*arguments) if call is None else call(copy, *arguments)

    program = trace(run, (state, *arguments), {})
    rows = {
        row.layer: row for row in search(program, marks.layers, marks.normalizers, marks.modules)
    }
    for path, (module, _) in modules(model).items():
        if type(module) in LAYERS:
            kind = type(module).__name__
            rows.setdefault(path, Row(path, kind, LEAVE, "not called on example_input"))
    order = {layer.path: number for number, layer in reversed(list(enumerate(marks.layers)))}
    return Report(tuple(rows.values())), order
