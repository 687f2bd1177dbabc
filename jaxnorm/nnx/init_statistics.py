"""The statistics of an nnx model before its first step: `init_statistics`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxnorm.conversion.foreign import is_array, without_leaks
from jaxnorm.conversion.trace import turned_in
from jaxnorm.nnx.changes import warn_of_changes
from jaxnorm.nnx.modules import modules
from jaxnorm.nnx.neuron_stats import LOCAL, NeuronStats, Seen, watching


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
        ValueError: for a model in which no layer records statistics, and for a stack of layers
            along another axis than the leading ones.

    Warns:
        UserWarning: if a layer that `convert` found a gate for has another activation now.

    Transformations: call it before `nnx.split` and `nnx.jit`. Layers stacked by `nnx.vmap` and run
    by `nnx.scan` have statistics stacked along the leading axes, as their parameters must be:
    ``nnx.StateAxes({jaxnorm.nnx.PARAMS_AND_STATISTICS: 0, ...: None})``.

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
    traced = {n: a for n, a in enumerate(leaves) if is_array(a)}
    found: dict[str, Seen] = {}

    def trace(state, traced):
        copy = nnx.merge(graph, state, constants)
        for path, (layer, _) in modules(copy).items():
            layer._path = path  # goes along into `nnx.scan` and `vmap`, unlike the object itself
        arguments = structure.unflatten(traced.get(n, a) for n, a in enumerate(leaves))
        outer, LOCAL.seen = LOCAL.seen, found
        try:
            (call or type(copy).__call__)(copy, *arguments)
        finally:
            LOCAL.seen = outer

    with watching(object()), without_leaks(model, args):
        program = jax.make_jaxpr(trace)(state, traced)
    turned = turned_in(program)
    if not found:
        raise ValueError(
            "init_statistics: got a model in which no layer records statistics, expected at least "
            "one; use the layers of jaxnorm.nnx, or jaxnorm.nnx.convert(model), with "
            "gradient='plain_with_statistics' or the default"
        )
    layers = modules(model)
    records = {
        path: _zeros(path, seen, layers[path][0], path in turned) for path, seen in found.items()
    }
    for path, record in records.items():
        layers[path][0].neuron_stats = NeuronStats(record)
    warn_of_changes(model, args, call)


def _zeros(path: str, seen: Seen, layer: Any, turned: bool) -> Any:
    """A layer's record before the first step, stacked as its kernel is."""
    stacked = jnp.shape(layer.kernel[...])
    stack = stacked[: len(stacked) - len(seen.kernel)]
    if turned or seen.turned or stacked != (*stack, *seen.kernel):
        raise ValueError(
            f"kernel: got shape {stacked} in the layer {path!r}, which is called with one of shape "
            f"{seen.kernel}, expected the same, stacked along the leading axes; use "
            "nnx.StateAxes({jaxnorm.nnx.PARAMS_AND_STATISTICS: 0, ...: None}), or skip= in convert"
        )
    return jax.tree.map(lambda a: jnp.zeros((*stack, *a.shape), a.dtype), seen.record)
