"""A traced copy of an nnx model, its layers and normalizations marked."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx

from jaxnorm.conversion.decisions import LEAVE
from jaxnorm.conversion.foreign import without_leaks
from jaxnorm.conversion.report import Report, Row
from jaxnorm.conversion.search import search
from jaxnorm.conversion.trace import Layer, Marks, trace
from jaxnorm.nnx.modules import become, modules
from jaxnorm.nnx.registry import KINDS, NORMALIZERS, kind_of
from jaxnorm.nnx.revert import revert


@functools.cache
def _marking(base: type) -> type:
    """A class whose calls are marked, for a copy of the model."""

    def layer(self, *args, **kwargs):
        z, kernel = base.__call__(self, *args, **kwargs), self.kernel[...]
        neurons = math.prod(jnp.shape(self.bias[...])) if self.bias is not None else 1
        if issubclass(base, (nnx.Linear, nnx.Conv, nnx.ConvTranspose)):
            neurons = self.out_features
        call = Layer(self._path, base.__name__, jnp.shape(z), neurons, kernel.ndim, None)
        return self._marks.layer(call, kernel, z)

    def normalizer(self, x, *args, **kwargs):
        run = lambda x: base.__call__(self, x, *args, **kwargs)  # noqa: E731
        return self._marks.normalization(self._path, x, run)

    def module(self, *args, **kwargs):
        return self._marks.returned(self._path, base.__call__(self, *args, **kwargs))

    call = normalizer if base in NORMALIZERS else module if kind_of(base) is None else layer
    return type(base.__name__, (base,), {"__call__": call})


def follow_layers(
    model: Any, example_input: Any, call: Callable[..., Any] | None, *, recorded: bool = True
) -> tuple[Report, dict[str, int]]:
    """(what follows each layer, path -> when it is called) of a copy of the model."""
    marks, known = Marks(), (*KINDS, *NORMALIZERS)
    graph, state = nnx.split(model)
    arguments = example_input if isinstance(example_input, tuple) else (example_input,)

    def run(state, *arguments):
        copy = nnx.merge(graph, state)
        revert(copy)
        for path, (module, _) in modules(copy).items():
            kind = type(module)
            # Of subclasses with methods of their own nothing is known.
            same = kind in known or kind_of(kind) is not None
            if callable(module) and (same or not isinstance(module, known)):
                become(module, _marking(type(module)))
                module._marks, module._path = marks, path
        out = copy(*arguments) if call is None else call(copy, *arguments)
        return out, nnx.state(copy)  # what was noted down on the model is a result too

    with without_leaks(model):
        traced = trace(run, (state, *arguments), {})
    rows = {row.layer: row for row in search(traced, marks.layers, recorded=recorded)}
    for path, (module, _) in modules(model).items():
        if isinstance(module, tuple(KINDS)):
            kind = type(module).__name__
            rows.setdefault(path, Row(path, kind, LEAVE, "not called on example_input"))
    order = {layer.path: number for number, layer in reversed(list(enumerate(marks.layers)))}
    return Report(tuple(rows.values())), order
