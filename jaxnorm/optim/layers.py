"""Which statistics belong to which parameters: by path, in trees of any library."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxnorm.statistics.tracked import Statistics

Path = tuple[str, ...]


def pairs(neuron_stats: Any, updates: Any) -> dict[Path, tuple[Path, Statistics]]:
    """{path of a layer's parameters: (its name, its statistics)}, of the kernels among the updates.

    Raises:
        ValueError: for statistics that are missing, or of layers that are not there.
    """
    if neuron_stats is None:
        raise ValueError(
            "neuron_stats: got None, expected the statistics of the layers; call "
            "tx.update(grads, state, params, neuron_stats=...), or use jaxnorm.linen.TrainState or "
            "jaxnorm.nnx.Optimizer"
        )
    # A layer of nnx holds its own as an attribute.
    found = {
        path[:-1] if path[-1:] == ("neuron_stats",) else path: statistics
        for path, statistics in statistics_in(neuron_stats).items()
    }
    if not found:
        raise ValueError(
            "neuron_stats: got no layer, expected at least one; make them with init_statistics"
        )
    leaves, masked = leaves_of(updates)
    prefix = ("params",) if all(path[:1] == ("params",) for path in leaves | masked) else ()
    result = {}
    for path, statistics in found.items():
        kernel = (*prefix, *path, "kernel")
        if kernel in masked:
            continue
        if kernel not in leaves:
            raise ValueError(
                f"neuron_stats: got statistics of {shown(path)}, expected only of layers "
                "whose kernels are among the gradients; they are of another model"
            )
        result[kernel[:-1]] = (path, statistics)
    return result


def statistics_in(tree: Any) -> dict[Path, dict[str, jax.Array]]:
    """Path -> statistics, of the layers in a tree of them."""
    layers: dict[Path, dict[str, jax.Array]] = {}
    for path, value in leaves_of(tree)[0].items():
        layers.setdefault(path[:-1], {})[path[-1] if path else ""] = value
    return {path: layer for path, layer in layers.items() if {"calls", "knobs"} <= layer.keys()}


def leaves_of(tree: Any) -> tuple[dict[Path, Any], dict[Path, Any]]:
    """(path -> array, path -> placeholder of `optax.masked`)."""

    def is_masked(leaf):
        return isinstance(leaf, optax.MaskedNode)

    every = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_masked)[0]
    paths = {_names(path): leaf for path, leaf in every}
    masked = {path: leaf for path, leaf in paths.items() if is_masked(leaf)}
    return {path: leaf for path, leaf in paths.items() if path not in masked}, masked


def _names(path: Any) -> Path:
    """A path as strings, without the boxes of Flax (`Partitioned`, `nnx.Variable`)."""
    if path and getattr(path[-1], "name", None) == "value":
        path = path[:-1]
    names = ((getattr(entry, name, None) for name in ("key", "name", "idx")) for entry in path)
    return tuple(str(next(n for n in name if n is not None)) for name in names)


def shown(path: Path) -> str:
    """A layer's name for an error."""
    if path[-1:] == ("neuron_stats",):
        path = path[:-1]
    return repr("/".join(path)) if path else "the layer"


def listed(layers: Any) -> str:
    """Their names for an error."""
    return ", ".join(map(shown, sorted(layers))) or "no layer"


def fits(shape: Any, inputs: Any, outputs: int) -> bool:
    """Whether a kernel of this shape can be [*inputs, O]: its leading axes make up the inputs."""
    if not inputs:
        return True
    for split in range(len(shape) + 1):
        if math.prod(shape[:split]) == math.prod(inputs) and outputs in (
            1,
            math.prod(shape[split:]),
        ):
            return True
    return False


def stacked(f: Any, axes: int) -> Any:
    """The function f of one layer for a stack of them (`flax.linen.scan`, `vmap`)."""
    for _ in range(axes):
        f = jax.vmap(f)
    return f


def transposed(array: jax.Array, axes: tuple[int, ...] | None) -> jax.Array:
    """With its axes in another order, None: the same."""
    return array if axes is None else jnp.transpose(array, axes)


def restored(array: jax.Array, axes: tuple[int, ...] | None, like: jax.Array) -> jax.Array:
    """On the axes and in the dtype of another array."""
    if axes is not None:
        array = array.reshape([like.shape[a] for a in axes])
        array = jnp.transpose(array, [axes.index(a) for a in range(len(axes))])
    return array.reshape(like.shape).astype(like.dtype)
