"""Which statistics belong to which parameters: by path, in trees of any library."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from jaxnorm.precision import at_least_float32
from jaxnorm.statistics.tracked import Statistics

Path = tuple[str, ...]


class Pair(NamedTuple):
    """What lies at a layer's kernel and at its bias, each or None."""

    kernel: Any
    bias: Any


class Layer(NamedTuple):
    """A layer's statistics, and where its parameters are.

    Attributes:
        name: the layer's, in errors.
        kernel: where its kernel is.
        bias: where its bias is, if it has one.
        statistics: see `Statistics`.
    """

    name: str
    kernel: Path
    bias: Path | None
    statistics: Statistics


def layers_of(neuron_stats: Any, updates: Any) -> list[Layer]:
    """The layers with statistics, of those whose kernels are among the updates.

    Raises:
        ValueError: for statistics that are missing, of layers that are not there, or that do not
            fit a kernel.
    """
    if neuron_stats is None:
        raise ValueError(
            "neuron_stats: got None, expected the statistics of the layers; call "
            "tx.update(grads, state, params, neuron_stats=...), or use jaxnorm.linen.TrainState or "
            "jaxnorm.nnx.Optimizer"
        )
    found = statistics_in(neuron_stats)
    if not found:
        raise ValueError(
            "neuron_stats: got no layer, expected at least one; make them with init_statistics"
        )
    leaves, masked = leaves_of(updates)
    prefix = ("params",) if all(path[:1] == ("params",) for path in leaves | masked) else ()
    layers = []
    for path, statistics in found.items():
        kernel, bias = statistics.kernel_path, statistics.bias_path
        if kernel is None:
            kernel, bias = (*prefix, *path, "kernel"), (*prefix, *path, "bias")
        elif (kernel[:1] == ("params",)) != bool(prefix):  # a collection of Flax, or what is in it
            kernel, bias = (
                each and ((*prefix, *each) if prefix else each[1:]) for each in (kernel, bias)
            )
        assert kernel is not None
        # A mask that is a prefix of the tree leaves one placeholder for all that is below.
        if any(kernel[:n] in masked for n in range(len(kernel) + 1)):
            continue
        if kernel not in leaves:
            raise ValueError(_not_among(shown(path), leaves))
        layers.append(Layer(shown(path), kernel, bias, statistics))
        _check_fits(layers[-1], leaves[kernel])
    return layers


def _not_among(layer: str, leaves: dict[Path, Any]) -> str:
    """What is wrong where a layer's kernel is not among the gradients."""
    if [getattr(leaf, "ndim", None) for leaf in leaves.values()] == [1] and () in leaves:
        return (
            f"updates: got one array with {leaves[()].size} entries, expected the tree of the "
            "parameters; flatten inside: in_neuron_coordinates(optax.flatten(inner))"
        )
    return (
        f"neuron_stats: got statistics of {layer}, expected only of layers "
        "whose kernels are among the gradients; they are of another model"
    )


def _check_fits(layer: Layer, kernel: jax.Array) -> None:
    """Raise a ValueError unless the kernel can be [*inputs, O] as the statistics are."""
    statistics = layer.statistics
    stack = statistics.scalars.shape[:-1]
    *inputs, outputs = statistics.shape[len(stack) :] or (1,)
    shape = kernel.shape[len(stack) :]
    shape = [shape[a] for a in statistics.kernel_axes or range(len(shape))]
    splits = [(math.prod(shape[:n]), math.prod(shape[n:])) for n in range(len(shape) + 1)]
    fit = not inputs or any(
        n == math.prod(inputs) and outputs in (1, neurons) for n, neurons in splits
    )
    if kernel.shape[: len(stack)] != stack or not fit:
        raise ValueError(
            f"neuron_stats: got statistics of shape {statistics.shape} for {layer.name}, "
            f"expected such as fit its kernel, {kernel.shape}; they are of another model"
        )


def check_usable(layer: Layer, usable: jax.Array, text: str) -> None:
    """Raise a ValueError where they are not, if that is known: not under `jax.jit`."""
    if not isinstance(usable, Tracer) and not bool(jnp.all(usable)):
        raise ValueError(f"neuron_stats: got statistics of {layer.name} that {text}")


def check_there(what: str, tree: Any, layers: Sequence[Layer]) -> None:
    """Raise a ValueError for a tree without what belongs to a layer's kernel."""
    leaves, _ = leaves_of(tree)
    for layer in layers:
        if layer.kernel not in leaves:
            raise ValueError(
                f"{what}: got none at {shown(layer.kernel)}, expected the tree of the gradients"
            )


def takes_statistics(state: Any) -> bool:
    """Whether the optimizer that has this state takes statistics."""

    def takes(state: Any) -> bool:
        return getattr(state, "takes_statistics", False)

    return any(map(takes, jax.tree.leaves(state, is_leaf=takes)))


def check_wrapped(state: Any) -> None:
    """Raise a ValueError for the state of an optimizer that would ignore the statistics."""
    if not takes_statistics(state):
        raise ValueError(
            "tx: got a transformation that takes no statistics, expected "
            "jaxnorm.in_neuron_coordinates(tx), or a chain that contains it"
        )


def changed(
    trees: Sequence[Any], layers: Sequence[tuple[Layer, Any]], change: Callable[..., Any]
) -> tuple[Any, ...]:
    """The trees with what lies at the layers changed, all else as it is.

    Args:
        trees: like that of the parameters.
        layers: each, and what `change` has to know of it, stacked as the layer is.
        change: (that, a `Pair` of each tree) -> as many pairs; on flat axes, [*inputs, O] and
            [1, ..., O], in at least float32.
    """
    every = [leaves_of(tree)[0] for tree in trees]
    new = [dict(leaves) for leaves in every]
    for layer, known in layers:
        pairs = [Pair(_at(leaves, layer.kernel), _at(leaves, layer.bias)) for leaves in every]
        results = _on_flat_axes(change, layer.statistics)(known, *pairs)
        for leaves, pair in zip(new, results, strict=True):
            for at, value in zip((layer.kernel, layer.bias), pair, strict=True):
                if at is not None and value is not None:
                    leaves[at] = value
    return tuple(filled(tree, leaves) for tree, leaves in zip(trees, new, strict=True))


def read(
    trees: Sequence[Any], layers: Sequence[tuple[Layer, Any]], look: Callable[..., Any]
) -> list[Any]:
    """What `look` makes of the pairs at each layer, which it is given as `changed` gives them."""
    every = [leaves_of(tree)[0] for tree in trees]
    found = []
    for layer, known in layers:
        pairs = [Pair(_at(leaves, layer.kernel), _at(leaves, layer.bias)) for leaves in every]

        def one(known: Any, *pairs: Pair, statistics: Statistics = layer.statistics) -> Any:
            return look(known, *(_flat(pair, statistics) for pair in pairs))

        found.append(stacked(one, layer.statistics)(known, *pairs))
    return found


def _at(leaves: dict[Path, Any], path: Path | None) -> Any:
    return None if path is None else leaves.get(path)


def _on_flat_axes(change: Callable[..., Any], statistics: Statistics) -> Callable[..., Any]:
    """`change` of pairs on the parameters' own axes, and in their dtypes."""
    axes = Pair(statistics.kernel_axes, statistics.bias_axes)

    def back(array: Any, axes: Any, like: Any) -> Any:
        if array is None:
            return None
        if axes is not None:
            array = array.reshape([like.shape[a] for a in axes])
            array = jnp.transpose(array, [axes.index(a) for a in range(len(axes))])
        return array.reshape(like.shape).astype(like.dtype)

    def one(known: Any, *pairs: Pair) -> tuple[Pair, ...]:
        every = [_flat(pair, statistics) for pair in pairs]
        return tuple(
            Pair(*map(back, new, axes, like))
            for new, like in zip(change(known, *every), pairs, strict=True)
        )

    return stacked(one, statistics)


def _flat(pair: Pair, statistics: Statistics) -> Pair:
    """On the axes of the statistics, [*inputs, O] and [1, ..., O], in at least float32."""
    *inputs, _ = statistics.shape[statistics.stack :] or (1,)

    def flat(array: Any, axes: Any, inputs: Sequence[int]) -> Any:
        if array is None:
            return None
        array = array.astype(at_least_float32(array.dtype, statistics.scalars.dtype))
        array = array if axes is None else jnp.transpose(array, axes)
        size = math.prod(inputs)
        return array.reshape(
            *inputs, array.size // size if size else math.prod(array.shape[len(inputs) :])
        )

    ones = [1] * len(inputs)
    return Pair(
        flat(pair.kernel, statistics.kernel_axes, inputs),
        flat(pair.bias, statistics.bias_axes, ones),
    )


def filled(tree: Any, leaves: dict[Path, Any]) -> Any:
    """The tree with other leaves, in its order."""
    return jax.tree.unflatten(jax.tree.structure(tree), list(leaves.values()))


def statistics_in(tree: Any) -> dict[Path, Statistics]:
    """Path of a layer -> its statistics, which are a variable of their own there."""
    leaves = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_statistics)[0]
    found = {}
    for path, leaf in leaves:
        if is_statistics(leaf):
            names = names_of(path)
            found[names if leaf.kernel_path is not None else names[:-1]] = leaf
    return found


def is_statistics(tree: Any) -> bool:
    """Whether it is the record of one layer."""
    return isinstance(tree, Statistics)


def leaves_of(tree: Any) -> tuple[dict[Path, Any], dict[Path, Any]]:
    """(path -> array, path -> what is in the place of those that are not there).

    That is the placeholder of `optax.masked`, or None as of Equinox; for one array or a branch.
    """

    def is_masked(leaf):
        return leaf is None or isinstance(leaf, optax.MaskedNode)

    every = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_masked)[0]
    paths = {names_of(path): leaf for path, leaf in every}
    masked = {path: leaf for path, leaf in paths.items() if is_masked(leaf)}
    return {path: leaf for path, leaf in paths.items() if path not in masked}, masked


def names_of(path: Any) -> Path:
    """A path as strings, without the boxes of Flax (`Partitioned`, `nnx.Variable`)."""
    if path and getattr(path[-1], "name", None) == "value":
        path = path[:-1]
    names = ((getattr(entry, name, None) for name in ("key", "name", "idx")) for entry in path)
    return tuple(str(next(n for n in name if n is not None)) for name in names)


def shown(path: Path) -> str:
    """A layer's name for an error."""
    return repr("/".join(path)) if path else "the layer"


def stacked(f: Callable[..., Any], statistics: Statistics) -> Callable[..., Any]:
    """The function f of one layer for a stack of them (`flax.linen.scan`, `vmap`)."""
    for _ in range(statistics.stack):
        f = jax.vmap(f)
    return f
