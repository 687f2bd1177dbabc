"""The statistics of nnx layers: `NeuronStats`, and `init_statistics`, which makes them."""

import threading
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxnorm.nnx.modules import modules
from jaxnorm.statistics.tracked import Statistics


class NeuronStats(nnx.Variable):
    """A layer's `jaxnorm.statistics.tracked.Statistics`, made by `init_statistics`.

    Raises:
        Nothing of its own.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> import jaxnorm
        >>> layer = jaxnorm.nnx.Linear(5, 3, gate="relu", rngs=nnx.Rngs(0))
        >>> jaxnorm.nnx.init_statistics(layer, jnp.ones((2, 5)))
        >>> params, statistics = nnx.state(layer, nnx.Param, jaxnorm.nnx.NeuronStats)
        >>> sorted(params), list(statistics)
        (['bias', 'kernel'], ['neuron_stats'])
    """


PARAMS_AND_STATISTICS = nnx.Any(nnx.Param, NeuronStats)
"""What to differentiate by: ``argnums=nnx.DiffState(0, PARAMS_AND_STATISTICS)``."""

#: What the layers of a traced copy would record, in each thread: path -> (axes of the kernel in the
#: call, statistics).
_LOCAL = threading.local()


def statistics_of(layer: Any, empty: Callable[[], Statistics]) -> Statistics | None:
    """A layer's statistics, or None."""
    shapes = getattr(_LOCAL, "shapes", None)
    if shapes is not None:
        if hasattr(layer, "_path"):
            shapes[layer._path] = (jnp.ndim(layer.kernel[...]), jax.eval_shape(empty))
        return None
    found = vars(layer).get("neuron_stats")
    return None if found is None else found.get_value()


def init_statistics(model: Any, *args: Any, call: Callable[..., Any] | None = None) -> None:
    """Give every layer of a model its statistics before the first step, in place.

    A layer that has them is trained as before; the gradient with respect to them is the statistics
    of the batch: sums, that add up over calls, micro-batches and devices as gradients do.
    `Optimizer` merges them.

    Args:
        model: an `nnx.Module` with layers of `jaxnorm.nnx`, or a converted one.
        *args: example inputs, arrays or `jax.ShapeDtypeStruct`. Nothing is computed with them.
        call: (model, *args) -> output, if that is not ``model(*args)``.

    Raises:
        ValueError: for a model in which no layer records statistics.

    Transformations: call it before `nnx.split` and `nnx.jit`. Layers stacked by `nnx.vmap` and run
    by `nnx.scan` have statistics stacked along the leading axes, as their parameters must be.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> import jaxnorm
        >>> layer = jaxnorm.nnx.Linear(5, 3, gate="relu", rngs=nnx.Rngs(0))
        >>> jaxnorm.nnx.init_statistics(layer, jnp.ones((2, 5)))
        >>> layer.neuron_stats.get_value().second.shape
        (5, 3)
    """
    # What is no variable (a mask) stays a constant.
    graph, state, constants = nnx.split(model, nnx.Variable, ...)
    leaves, structure = jax.tree.flatten(args)
    # What is no array (a flag) stays as it is.
    traced = {n: a for n, a in enumerate(leaves) if hasattr(a, "shape")}
    found: dict[str, tuple[int, Statistics]] = {}

    def trace(state, traced):
        copy = nnx.merge(graph, state, constants)
        for path, (layer, _) in modules(copy).items():
            layer._path = path  # goes along into `nnx.scan` and `vmap`, unlike the object itself
        arguments = structure.unflatten(traced.get(n, a) for n, a in enumerate(leaves))
        _LOCAL.shapes = found
        try:
            (call or type(copy).__call__)(copy, *arguments)
        finally:
            _LOCAL.shapes = None

    jax.eval_shape(trace, state, traced)
    if not found:
        raise ValueError(
            "init_statistics: got a model in which no layer records statistics, expected at least "
            "one; use the layers of jaxnorm.nnx, or jaxnorm.nnx.convert(model), with "
            "gradient='plain_with_statistics' or the default"
        )
    layers = modules(model)
    for path, (axes, shapes) in found.items():
        layer = layers[path][0]
        kernel = jnp.shape(layer.kernel[...])
        stack = kernel[: len(kernel) - axes]
        layer.neuron_stats = NeuronStats(_zeros(stack, shapes))


def _zeros(stack: tuple[int, ...], shapes: Any) -> Any:
    return jax.tree.map(lambda a: jnp.zeros((*stack, *a.shape), a.dtype), shapes)
