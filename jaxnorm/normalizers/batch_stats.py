"""BatchNorm without its scale and bias, as a part of other normalizers."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm.normalizers.channels import along, averaged, check_count, count, moments

#: Which variance runs along: "flax": the biased one; "torch": the unbiased one, N/(N - 1) times it.
CONVENTIONS = ("flax", "torch")


class BatchStats(NamedTuple):
    """The running statistics of a BatchNorm.

    Attributes:
        mean: [C].
        var: [C].
    """

    mean: jax.Array
    var: jax.Array


def initial_batch_stats(channels: int) -> BatchStats:
    """Mean 0, variance 1."""
    return BatchStats(jnp.zeros(channels), jnp.ones(channels))


def normalized(
    x: jax.Array,
    state: BatchStats,
    *,
    train: bool,
    momentum: float,
    epsilon: float,
    convention: str,
    axis_name: Any,
    axis_index_groups: Any,
) -> tuple[jax.Array, BatchStats]:
    """(x - mean) / sqrt(var + epsilon), of the batch if `train`, and the new running statistics."""
    if not train:
        return (x - along(state.mean, x)) * lax.rsqrt(along(state.var, x) + epsilon), state
    values = count(x, axis_name, axis_index_groups)
    check_count(x, values)
    mean, var, centered = moments(x, axis_name, axis_index_groups)
    seen = var * (values / (values - 1)) if convention == "torch" else var
    new = BatchStats(averaged(state.mean, mean, momentum), averaged(state.var, seen, momentum))
    return centered * lax.rsqrt(var + epsilon), new
