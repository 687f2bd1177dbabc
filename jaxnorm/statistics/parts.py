"""Which calls a sum of statistics holds, and by what it was scaled.

Whoever sums gradients over micro-batches or devices, averages them, or scales them with the loss,
does the same to the statistics beside them. Moments are ratios, to which a factor is nothing. But
how far a neuron's own moments are trusted depends on how many samples there were (see
`Rule.shrinkage`), and the mean of two halves looks like one half of the samples.

So every call leaves marks: a table of 0 and 1 by a hash of its data, and of its place among those
that `jax.vmap` maps, in whose column l it has a 1 with probability 2^-l (always, in column 0). Of K
different calls some entry is 1 in exactly one of them (for K up to 2^16; all but 1 in 10^7 times),
so the smallest positive entry of what has become of their sum is the factor itself.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_ROWS, _COLUMNS = 16, 16


def of_call(*sums: jax.Array, position: Any) -> jax.Array:
    """The marks of one call with these sums over its samples, at this position, [16, 16]."""
    word = jnp.arange(_ROWS, dtype=jnp.uint32) * jnp.uint32(0x85EBCA77)
    word = word ^ (position * jnp.uint32(0xC2B2AE3D))
    for values in sums:  # each by itself: one may be far larger than what tells the others apart
        number = jnp.sum(values * _weights(values)).astype(jnp.float32)
        word = (word ^ lax.bitcast_convert_type(number, jnp.uint32)) * jnp.uint32(0x9E3779B1)
    for shift, factor in ((15, 0x2C1B3C6D), (12, 0x297A2D39)):
        word = (word ^ (word >> shift)) * jnp.uint32(factor)
    word = word ^ (word >> 15)
    lowest = (jnp.uint32(1) << jnp.arange(_COLUMNS, dtype=jnp.uint32)) - 1
    return (word[:, None] & lowest[None, :] == 0).astype(sums[0].dtype)


def _weights(values: jax.Array) -> jax.Array:
    """Numbers by which a sum of values can be told from that of others."""
    return jnp.cos(jnp.arange(values.size, dtype=values.dtype)).reshape(values.shape)


def one_call(parts: jax.Array) -> jax.Array:
    """The marks that every call has, and nothing else."""
    return (jnp.arange(parts.size) == 0).reshape(parts.shape).astype(parts.dtype)


def common_factor(parts: jax.Array) -> jax.Array:
    """By what the sum of the marks of several calls was multiplied; inf where there is none."""
    return jnp.min(jnp.where(parts > 0, parts, jnp.inf))
