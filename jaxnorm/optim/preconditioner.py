"""What `scale_by_bnp` and `scale_by_quasi_diagonal` share: the layers, and their averages.

Both change the gradients of a layer by moments of which they keep the averages themselves, in trees
like that of the parameters.
"""

import math
import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from jaxnorm.optim.layers import (
    Layer,
    Pair,
    Path,
    changed,
    check_there,
    check_usable,
    filled,
    layers_of,
    leaves_of,
)
from jaxnorm.optim.update_statistics import is_certain
from jaxnorm.precision import at_least_float32
from jaxnorm.statistics.tracked import Statistics

#: (statistics of the batch, gradient, the averages) -> (gradient, averages), of one layer.
Change = Callable[[Statistics, Pair, tuple[Pair, ...]], tuple[Pair, tuple[Pair, ...]]]


def check_number(name: str, value: Any, expected: str, fits: Callable[[Any], bool]) -> None:
    """Raise an error unless `value` is a number that fits, or an array without axes."""
    if isinstance(value, bool) or not (
        isinstance(value, numbers.Real) or getattr(value, "shape", None) == ()
    ):
        raise TypeError(f"{name}: got {value!r}, expected {expected}")
    if not isinstance(value, Tracer) and not (math.isfinite(value) and fits(value)):
        raise ValueError(f"{name}: got {value}, expected {expected}")


def averages(params: Any, name: str, value: float) -> Any:
    """A tree with arrays of `value` like the layers' leaves of this name, and masked elsewhere."""
    leaves, _ = leaves_of(params)

    def like(path: Path, leaf: Any) -> Any:
        if path[-1:] != (name,) or (*path[:-1], "kernel") not in leaves:
            return optax.MaskedNode()
        return jnp.full(leaf.shape, value, at_least_float32(leaf.dtype))

    return filled(params, {path: like(path, leaf) for path, leaf in leaves.items()})


def preconditioned(
    updates: Any,
    trees: tuple[Any, ...],
    neuron_stats: Any,
    fields: tuple[str, ...],
    change: Change,
) -> tuple[Any, ...]:
    """(updates, *trees) with every layer's changed, all else as it is.

    Args:
        updates: the gradients.
        trees: of `averages`; the last is that of the kernels.
        neuron_stats: the statistics of this batch.
        fields: which of them `change` needs.
        change: see `Change`.
    """
    layers = layers_of(neuron_stats, updates)
    leaves, _ = leaves_of(updates)
    for layer in layers:
        _check(layer, (*fields, "origin") if layer.bias in leaves else fields)
    check_there("state", trees[-1], layers)

    def guarded(statistics: Statistics, gradient: Pair, *averages: Pair) -> tuple[Pair, ...]:
        usable = _usable(statistics)
        gradient, new = change(statistics.counted(), gradient, averages)
        # Under jit nothing can be raised: no step, and nothing that is averaged.
        gradient = jax.tree.map(lambda g: jnp.where(usable, g, 0), gradient)
        return gradient, *jax.tree.map(lambda a, b: jnp.where(usable, a, b), new, averages)

    known = [(layer, layer.statistics) for layer in layers]
    return changed((updates, *trees), known, guarded)


def _check(layer: Layer, fields: tuple[str, ...]) -> None:
    """Raise a ValueError for statistics that are not those of this layer's batch."""
    lacking = [name for name in fields if getattr(layer.statistics, name) is None]
    if lacking:
        raise ValueError(
            f"neuron_stats: got statistics without {lacking[0]!r} for {layer.name}, expected "
            f"all of {', '.join(fields)}; give the layer the rule that the transformation names"
        )
    text = (
        "are of no batch, or averaged over several, expected those of this batch: the gradient "
        "with respect to neuron_stats, of a Rule with statistics_every=1"
    )
    if not is_certain(layer.statistics):  # seen under jit, too
        raise ValueError(f"neuron_stats: got statistics of {layer.name} that {text}")
    check_usable(layer, _usable(layer.statistics), text)


def _usable(statistics: Statistics) -> jax.Array:
    """Whether they are of one batch, and not of none, nor averaged over several by `decay`."""
    averaged = (statistics.steps > 0) & (statistics.decay > 0)
    return (statistics.calls > 0) & ~averaged


def all_finite(*arrays: jax.Array) -> jax.Array:
    """Whether a batch may enter an average."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(a)) for a in arrays]))
