"""What `scale_by_bnp` and `scale_by_quasi_diagonal` share: the layers, and what is kept for them.

Both change the gradients of a layer by moments of which they keep the averages themselves, in trees
like that of the parameters. All arrays of one layer come as a `Pair`.
"""

import math
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from jaxnorm.optim.layers import (
    Path,
    fits,
    leaves_of,
    pairs,
    restored,
    shown,
    stacked,
    transposed,
)
from jaxnorm.statistics.tracked import Statistics, axes_of


class Pair(NamedTuple):
    """What lies at a layer's kernel and at its bias, each or None; flat axes, [..., I, O]."""

    kernel: Any
    bias: Any


Change = Callable[[Statistics, Pair, tuple[Pair, ...]], tuple[Pair, tuple[Pair, ...]]]


def check_number(name: str, value: Any, expected: str, fits: Callable[[Any], bool]) -> None:
    """Raise an error unless `value` is a number that fits, or an array without axes."""
    if isinstance(value, bool) or not (
        isinstance(value, numbers.Real) or getattr(value, "shape", None) == ()
    ):
        raise TypeError(f"{name}: got {value!r}, expected {expected}")
    if not isinstance(value, Tracer) and not (math.isfinite(value) and fits(value)):
        raise ValueError(f"{name}: got {value}, expected {expected}")


def kept(params: Any, name: str, value: float) -> Any:
    """A tree with arrays of `value` like the layers' leaves of this name, and masked elsewhere."""
    leaves, _ = leaves_of(params)

    def like(path: Path, leaf: Any) -> Any:
        if path[-1:] != (name,) or (*path[:-1], "kernel") not in leaves:
            return optax.MaskedNode()
        return jnp.full(leaf.shape, value, jnp.promote_types(leaf.dtype, jnp.float32))

    return _filled(params, {path: like(path, leaf) for path, leaf in leaves.items()})


def changed(
    updates: Any,
    trees: tuple[Any, ...],
    neuron_stats: Any,
    entries: tuple[str, ...],
    change: Change,
) -> tuple[Any, tuple[Any, ...]]:
    """(updates, trees) with every layer's own changed, all else as it is.

    Args:
        updates: the gradients.
        trees: what is kept, of `kept`.
        neuron_stats: the statistics of this batch.
        entries: which of them `change` needs.
        change: (statistics of one layer, its gradient, what is kept for it) -> the new two.
    """
    every = [leaves_of(tree)[0] for tree in (updates, *trees)]
    new = [dict(leaves) for leaves in every]
    for path, statistics in _layers(neuron_stats, updates, entries).items():
        pairs = [Pair(*(leaves.get((*path, name)) for name in Pair._fields)) for leaves in every]
        if all(pair.kernel is None for pair in pairs[1:]):
            raise ValueError(
                f"state: got none for {shown(path)}, expected that of its parameters; call "
                "tx.init(params) with the tree of the gradients"
            )
        for leaves, pair in zip(new, _changed(path, statistics, pairs, change), strict=True):
            for name, value in zip(Pair._fields, pair, strict=True):
                if value is not None:
                    leaves[*path, name] = value
    gradients, *rest = map(_filled, (updates, *trees), new)
    return gradients, tuple(rest)


def _filled(tree: Any, leaves: dict[Path, Any]) -> Any:
    return jax.tree.unflatten(jax.tree.structure(tree), list(leaves.values()))


def _layers(neuron_stats: Any, updates: Any, entries: tuple[str, ...]) -> dict[Path, Statistics]:
    """Path -> statistics, of the layers whose kernels are among the updates."""
    leaves, _ = leaves_of(updates)
    layers = {}
    for path, (name, statistics) in pairs(neuron_stats, updates).items():
        _check(name, statistics, leaves[(*path, "kernel")], entries, (*path, "bias") in leaves)
        layers[path] = statistics
    return layers


def _check(
    path: Path, statistics: Statistics, kernel: jax.Array, entries: tuple[str, ...], biased: bool
) -> None:
    """Raise a ValueError for statistics that are not those of this layer's batch."""
    if biased:
        entries = (*entries, "origin")
    lacking = [name for name in entries if name not in statistics]
    if lacking:
        raise ValueError(
            f"neuron_stats: got statistics without {lacking[0]!r} for {shown(path)}, expected "
            f"all of {', '.join(entries)}; give the layer the rule that the transformation names"
        )
    stack = statistics["calls"].ndim
    shape = kernel.shape[stack:]
    shape = [shape[a] for a in axes_of("kernel", statistics) or range(len(shape))]
    *inputs, _ = statistics["layer_second"].shape[stack:]
    outputs = math.prod(shape) // max(math.prod(inputs), 1)
    if kernel.shape[:stack] != statistics["calls"].shape or not fits(shape, inputs, outputs):
        raise ValueError(
            f"neuron_stats: got statistics of shape {(*inputs, outputs)} for {shown(path)}, "
            f"expected such as fit its kernel, {kernel.shape}; they are of another model"
        )
    usable = _usable(statistics)
    if not isinstance(usable, Tracer) and not bool(jnp.all(usable)):
        raise ValueError(
            f"neuron_stats: got statistics of {shown(path)} that are of no batch, or averaged "
            "over several, expected those of this batch: the gradient with respect to "
            "neuron_stats, of a Rule with statistics_every=1"
        )


def _usable(statistics: Statistics) -> jax.Array:
    """Whether they are of one batch, and not of none, nor averaged over several by `decay`."""
    averaged = (statistics["steps"] > 0) & (statistics["knobs"][..., 3] > 0)
    return (statistics["calls"] > 0) & ~averaged


def _changed(
    path: Path, statistics: Statistics, pairs: list[Pair], change: Change
) -> tuple[Pair, ...]:
    """`change` of the gradient (the first of the pairs) and the rest, on Flax's axes."""
    axes = Pair(axes_of("kernel", statistics), axes_of("bias", statistics))

    def one(statistics: Statistics, pairs: list[Pair]) -> tuple[Pair, ...]:
        *inputs, _ = statistics["layer_second"].shape
        flat = [
            Pair(
                None if kernel is None else _flat(kernel, axes.kernel, inputs),
                None if bias is None else _flat(bias, axes.bias, [1] * len(inputs)),
            )
            for kernel, bias in pairs
        ]
        gradient, own = change(statistics, flat[0], tuple(flat[1:]))
        # Under jit nothing can be raised: never a silently wrong step.
        gradient = jax.tree.map(lambda g: jnp.where(_usable(statistics), g, jnp.nan), gradient)
        new = (gradient, *own)
        return tuple(
            Pair(
                None if pair.kernel is None else restored(pair.kernel, axes.kernel, like.kernel),
                None if pair.bias is None else restored(pair.bias, axes.bias, like.bias),
            )
            for pair, like in zip(new, pairs, strict=True)
        )

    return stacked(one, statistics["calls"].ndim)(statistics, pairs)


def _flat(array: jax.Array, axes: tuple[int, ...] | None, inputs: list[int]) -> jax.Array:
    """[*inputs, O], in at least float32."""
    array = array.astype(jnp.promote_types(array.dtype, jnp.float32))
    return transposed(array, axes).reshape(*inputs, array.size // max(math.prod(inputs), 1))


def origin_of(statistics: Statistics) -> jax.Array:
    """What the batch's sums are taken about."""
    return statistics.get("origin", jnp.zeros(())) / jnp.maximum(statistics["calls"], 1)


def unmasked(statistics: Statistics, mean: jax.Array) -> jax.Array:
    """The mean, 0 where an entry of the kernel is switched off for good."""
    return jnp.where(statistics["mask"] == 0, 0, mean) if "mask" in statistics else mean


def all_finite(*arrays: jax.Array) -> jax.Array:
    """Whether a batch may enter an average that is kept."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(a)) for a in arrays]))
