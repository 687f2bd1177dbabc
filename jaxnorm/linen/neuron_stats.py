"""The variable collection ``neuron_stats`` of linen layers."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core.scope import union_filters

from jaxnorm.statistics.tracked import Statistics

COLLECTION = "neuron_stats"
#: What a layer's variable in it is called.
_NAME = "statistics"


def statistics_of(layer: nn.Module, empty: Callable[[], Statistics]) -> Statistics | None:
    """A layer's statistics, or None; new ones where the collection may be written.

    Not in ``model.init``, which gives Flax's variables and no more.
    """
    found = layer.variables.get(COLLECTION)
    if found or layer.is_initializing() or not layer.is_mutable_collection(COLLECTION):
        # Something else there is refused where its shapes are checked.
        return found.get(_NAME, dict(found)) if found else None
    new = empty()
    layer.put_variable(COLLECTION, _NAME, new)
    return new


def init_statistics(model: Any, variables: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """The collection ``neuron_stats`` of a model before its first step.

    Where it is among the variables, the gradient with respect to it is the statistics of the batch:
    sums, that add up over calls, micro-batches and devices as gradients do. Nothing is written in
    the forward pass, so nothing has to be ``mutable``. Merge the gradient with
    `jaxnorm.update_statistics`, or let `TrainState` do it.

    Args:
        model: a module of our layers, or an apply function (that of `neuronwise`).
        variables: of ``model.init``, as ``model.apply`` takes them.
        *args: the other arguments of ``model.apply``: example inputs, arrays or
            `jax.ShapeDtypeStruct`. Nothing is computed with them.
        **kwargs: as ``model.apply`` takes them (``rngs``, ``mutable``, ``train``, ``method``).

    Returns:
        {layer: {"statistics": zeros}}; see `jaxnorm.statistics.tracked.Statistics`.

    Raises:
        ValueError: for a model in which no layer records statistics.

    Transformations: may be called inside any. Under `flax.linen.scan` and `vmap` list the
    collection beside the parameters: ``variable_axes={"params": 0, "neuron_stats": 0}``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxnorm
        >>> layer = jaxnorm.linen.Dense(3, gate="relu")
        >>> variables = layer.init(jax.random.key(0), jnp.ones((2, 5)))
        >>> stats = jaxnorm.linen.init_statistics(layer, variables, jnp.ones((2, 5)))
        >>> stats["statistics"].second.shape  # of a model: stats["Dense_0"]["statistics"].second
        (5, 3)
    """
    apply = model.apply if isinstance(model, nn.Module) else model
    mutable = union_filters(kwargs.pop("mutable", False), COLLECTION)
    variables = {name: tree for name, tree in variables.items() if name != COLLECTION}
    leaves, structure = jax.tree.flatten((variables, args))
    # What is no array (a flag) stays as it is.
    traced = {n: a for n, a in enumerate(leaves) if hasattr(a, "shape")}

    def collected(traced):
        variables, args = structure.unflatten(traced.get(n, a) for n, a in enumerate(leaves))
        return apply(variables, *args, mutable=mutable, **kwargs)[1].get(COLLECTION, {})

    shapes = jax.eval_shape(collected, traced)
    if not jax.tree.leaves(shapes):
        raise ValueError(
            "init_statistics: got a model in which no layer records statistics, expected at least "
            "one; use the layers of jaxnorm.linen, or jaxnorm.linen.neuronwise(model), with "
            "gradient='plain_with_statistics' or the default"
        )
    return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
