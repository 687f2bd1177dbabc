"""What a BatchNorm of Flax needs beside itself to follow PyTorch's convention.

Flax's layer normalizes; here is only which statistics are stored:

    old' = m old + (1 - m) batch       m: momentum; k / (k + 1) after k batches if that is None
    var of the batch: times N / (N - 1) in PyTorch's convention, N values per channel

Source: the update is that of Ioffe and Szegedy, arXiv 1502.03167, section 3.1 and algorithm 2,
which stores the unbiased variance, as PyTorch does.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm.normalizers.conventions import convention_of, epsilon_of, momentum_of


class Knobs(NamedTuple):
    """The arguments of a layer, with the convention's in place of those that were not given."""

    momentum: float | None
    epsilon: float
    unbiased: bool


def knobs_of(convention: Any, momentum: Any, epsilon: Any) -> Knobs:
    """What these arguments come to. Raises a ValueError for impossible ones."""
    defaults = convention_of(convention)
    return Knobs(
        momentum_of(momentum, defaults.momentum),
        epsilon_of(epsilon, defaults.batch_epsilon),
        defaults.unbiased,
    )


def channel_axes(rank: int, axis: int | Sequence[int]) -> tuple[int, ...]:
    """The axes of the channels, counted from the first."""
    axes = (axis,) if isinstance(axis, int) else axis
    return tuple(sorted({a % rank for a in axes}))


def values_per_channel(
    shape: Sequence[int],
    axis: int | Sequence[int],
    *,
    axis_name: Any = None,
    axis_index_groups: Any = None,
    mask: Any = None,
) -> Any:
    """N, over all devices: a number, with a mask an array of as many axes as there are channels.

    Args:
        shape: of x.
        axis: of the channels.
        axis_name: mapped axes over which the batch is spread.
        axis_index_groups: of them, as in `jax.lax.psum`.
        mask: which values count, None for all; of a shape that broadcasts to that of x.
    """
    kept = channel_axes(len(shape), axis)
    summed = tuple(a for a in range(len(shape)) if a not in kept)
    count: Any = math.prod(shape[a] for a in summed)
    if mask is not None:
        count = jnp.broadcast_to(mask, shape).sum(summed, dtype=jnp.float32)
    if axis_name is None:
        return count
    return lax.psum(count, axis_name, axis_index_groups=axis_index_groups)


def stored_variance(var: jax.Array, count: Any, *, unbiased: bool) -> jax.Array:
    """The variance of a batch as it is stored; that of a single value stays 0."""
    if not unbiased:
        return var
    if isinstance(count, int):
        return var * (count / max(count - 1, 1))
    return var * (count / jnp.maximum(count - 1, 1)).astype(var.dtype)


def averaged(old: jax.Array, batch: jax.Array, momentum: float | None, count: Any) -> jax.Array:
    """What is stored after a batch.

    Args:
        old: what was stored before.
        batch: the batch's own.
        momentum: weight of the old one; None: that of an average over all batches.
        count: the batches before this one, for ``momentum=None``.
    """
    batch = batch.astype(old.dtype)
    if momentum is not None:
        return momentum * old + (1 - momentum) * batch
    share = 1 / (count + 1).astype(old.dtype)
    return (1 - share) * old + share * batch
