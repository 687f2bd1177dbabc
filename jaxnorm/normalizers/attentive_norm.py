"""Attentive Normalization: each sample mixes its own scale and bias out of several."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm.normalizers.batch_stats import (
    CONVENTIONS,
    BatchStats,
    initial_batch_stats,
    normalized,
)
from jaxnorm.normalizers.channels import (
    check_channels,
    check_choice,
    check_count,
    check_knob,
    check_positions,
    computed,
    count,
    scaled,
    space_moments,
)

#: What makes weights of the mixtures out of the attention's BatchNorm.
ATTENTIONS = {
    "hard_sigmoid": jax.nn.hard_sigmoid,
    "sigmoid": jax.nn.sigmoid,
    "softmax": jax.nn.softmax,
}

#: Added to the variance over space by which the pooled input is divided.
_POOLED_EPSILON = 1e-3


class AttentiveParams(NamedTuple):
    """The parameters of Attentive Normalization, of K mixtures.

    Attributes:
        scale: [K, C].
        bias: [K, C].
        projection: [C, K], the 1x1 convolution.
        attention_scale: [K], of the BatchNorm after it.
        attention_bias: [K], of the BatchNorm after it.
    """

    scale: jax.Array
    bias: jax.Array
    projection: jax.Array
    attention_scale: jax.Array
    attention_bias: jax.Array


class AttentiveState(NamedTuple):
    """The running statistics of both BatchNorms.

    Attributes:
        mean: [C].
        var: [C].
        attention_mean: [K].
        attention_var: [K].
    """

    mean: jax.Array
    var: jax.Array
    attention_mean: jax.Array
    attention_var: jax.Array


def around_one(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """The published initial scales: normal around 1, with standard deviation 0.1."""
    return 1 + 0.1 * jax.random.normal(key, shape, dtype)


def initial_attentive_state(channels: int, mixtures: int) -> AttentiveState:
    """Means 0, variances 1."""
    return AttentiveState(*initial_batch_stats(channels), *initial_batch_stats(mixtures))


def attentive_norm(
    x: jax.Array,
    state: AttentiveState,
    params: AttentiveParams,
    *,
    train: bool,
    momentum: float = 0.9,
    epsilon: float = 1e-5,
    attention: str = "hard_sigmoid",
    unbiased: bool = False,
    convention: str = "flax",
    axis_name: Any = None,
    axis_index_groups: Any = None,
) -> tuple[jax.Array, AttentiveState]:
    """The function of `jaxnorm.linen.normalizers.AttentiveNorm`, which says what all of it means.

    Returns:
        y [N, *space, C], float32 or wider, and the new state: the old one unless `train`.

    Raises:
        TypeError, ValueError: as the layer.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxnorm.normalizers import AttentiveParams, attentive_norm, initial_attentive_state
        >>> params = AttentiveParams(
        ...     jnp.ones((5, 3)), jnp.zeros((5, 3)), jnp.ones((3, 5)), jnp.ones(5), jnp.zeros(5)
        ... )
        >>> x = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
        >>> y, state = attentive_norm(x, initial_attentive_state(3, 5), params, train=True)
        >>> y.shape, state.attention_mean.shape
        ((4, 8, 8, 3), (5,))
    """
    check_channels(x, state.mean.shape[0])
    check_knob("momentum", momentum, 0, 1)
    check_knob("epsilon", epsilon, 0)
    check_choice("attention", attention, tuple(ATTENTIONS))
    check_choice("convention", convention, CONVENTIONS)
    check_positions(x, unbiased=unbiased)
    x = computed(x)

    def batch_norm(x, mean, var):
        return normalized(
            x,
            BatchStats(mean, var),
            train=train,
            momentum=momentum,
            epsilon=epsilon,
            convention=convention,
            axis_name=axis_name,
            axis_index_groups=axis_index_groups,
        )

    y, new = batch_norm(x, state.mean, state.var)
    pooled, var, _ = space_moments(x)
    if train:
        check_count(x, count(pooled, axis_name, axis_index_groups), "sample")
    if unbiased:
        positions = math.prod(x.shape[1:-1])
        var = var * (positions / (positions - 1))
    pooled = pooled * lax.rsqrt(var + _POOLED_EPSILON)
    projected = jnp.matmul(pooled, params.projection, precision=lax.Precision.HIGHEST)
    weights, new_attention = batch_norm(projected, state.attention_mean, state.attention_var)
    logits = scaled(weights, params.attention_scale, params.attention_bias)
    weights = ATTENTIONS[attention](logits)
    scale = jnp.matmul(weights, params.scale, precision=lax.Precision.HIGHEST)
    bias = jnp.matmul(weights, params.bias, precision=lax.Precision.HIGHEST)
    return y * scale + bias, AttentiveState(*new, *new_attention)
