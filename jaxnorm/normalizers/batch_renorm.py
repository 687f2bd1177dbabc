"""Batch Renormalization: batch statistics, corrected towards the running ones."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm.normalizers.channels import (
    along,
    averaged,
    check_channels,
    check_count,
    check_knob,
    computed,
    count,
    moments,
    scaled,
)

#: Steps so far -> (r_max, d_max).
Limits = Callable[[Any], tuple[Any, Any]]


class RenormState(NamedTuple):
    """The running statistics of Batch Renormalization.

    Attributes:
        mean: [C], of the means of the batches.
        std: [C], of their standard deviations, epsilon included.
        steps: scalar, the training steps so far.
    """

    mean: jax.Array
    std: jax.Array
    steps: jax.Array


def initial_renorm_state(channels: int) -> RenormState:
    """Mean 0, standard deviation 1, no steps."""
    return RenormState(jnp.zeros(channels), jnp.ones(channels), jnp.zeros((), jnp.int32))


def published_limits(steps: Any) -> tuple[Any, Any]:
    """(r_max, d_max) after so many steps.

    BatchNorm, (1, 0), in the first 5000, then linear to r_max = 3 at 40000 and d_max = 5 at 25000.
    """
    r_max = jnp.clip(2 * (steps / 35000) + 25 / 35, 1.0, 3.0)
    return r_max, jnp.clip(5 * (steps / 20000) - 25 / 20, 0.0, 5.0)


def batch_renorm(
    x: jax.Array,
    state: RenormState,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    train: bool,
    momentum: float = 0.99,
    epsilon: float = 1e-3,
    limits: Limits = published_limits,
    schedule_scale: float = 1.0,
    axis_name: Any = None,
    axis_index_groups: Any = None,
) -> tuple[jax.Array, RenormState]:
    """The function of `jaxnorm.linen.normalizers.BatchRenorm`, which says what all of it means.

    Returns:
        y [N, *space, C], float32 or wider, and the new state: the old one unless `train`.

    Raises:
        TypeError, ValueError: as the layer.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxnorm.normalizers import batch_renorm, initial_renorm_state
        >>> y, state = batch_renorm(jnp.eye(2) + 7, initial_renorm_state(2), train=True)
        >>> print(y.round(3), state.mean, state.steps)
        [[ 0.998 -0.998]
         [-0.998  0.998]] [0.075 0.075] 1
    """
    check_channels(x, state.mean.shape[0])
    check_knob("momentum", momentum, 0, 1)
    check_knob("epsilon", epsilon, 0)
    check_knob("schedule_scale", schedule_scale, 1e-6)
    x = computed(x)
    mean, std = along(state.mean, x), along(state.std, x)
    if not train:
        return scaled((x - mean) / std, scale, bias), state
    check_count(x, count(x, axis_name, axis_index_groups))
    mean_of_batch, var, centered = moments(x, axis_name, axis_index_groups)
    std_of_batch = _root(var) + epsilon
    r_max, d_max = limits(state.steps.astype(x.dtype) / schedule_scale)
    r = lax.stop_gradient(jnp.clip(std_of_batch / std, 1 / r_max, r_max))
    d = lax.stop_gradient(jnp.clip((mean_of_batch - mean) / std, -d_max, d_max))
    new = RenormState(
        averaged(state.mean, mean_of_batch, momentum),
        averaged(state.std, std_of_batch, momentum),
        state.steps + 1,
    )
    return scaled(centered / std_of_batch * r + d, scale, bias), new


def _root(var: jax.Array) -> jax.Array:
    """The square root, whose derivative at 0 (a constant channel) is taken as 0."""
    positive = var > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, var, 1)), 0)
