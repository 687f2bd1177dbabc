"""Stochastic normalization: a deterministic one with the noise of BatchNorm in its parameters."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxnorm.normalizers.batch_stats import BatchStats
from jaxnorm.normalizers.channels import (
    along,
    averaged,
    check_input,
    computed,
    count,
    moments,
    scaled,
)
from jaxnorm.normalizers.checks import (
    NOT_NEGATIVE,
    SHARE,
    check_choice,
    check_count,
    check_given,
    check_knob,
    check_values,
)


def draw_batch_noise(
    key: jax.Array, samples: int, channels: int, dtype: Any = jnp.float32
) -> jax.Array:
    """The noise (U, V) of a batch of M normal values: V ~ N(0, 1/M), M / U^2 ~ chi^2 of M - 1.

    Args:
        key: of `jax.random`.
        samples: M, at least 2.
        channels: C.
        dtype: of the noise.

    Returns:
        [2, C]: U, the deviation sigma over that of the batch, and V, the mean less that of the
        batch in units of sigma; independent in each channel.

    Raises:
        TypeError: for a number of samples that is no int.
        ValueError: for less than two.

    Example:
        >>> import jax
        >>> from jaxnorm.normalizers.stochastic_norm import draw_batch_noise
        >>> u, v = draw_batch_noise(jax.random.key(0), 50, 100_000)
        >>> [round(float(50 * each), 1) for each in ((v**2).mean(), (u**-2).mean())]
        [1.0, 49.0]
    """
    check_count("samples", samples, 2)
    for_u, for_v = jax.random.split(key)
    chi2 = 2 * jax.random.gamma(for_u, (samples - 1) / 2, (channels,), dtype)
    v = jax.random.normal(for_v, (channels,), dtype) * samples**-0.5
    return jnp.stack([jnp.sqrt(samples / chi2), v])


def stochastic_norm(
    x: jax.Array,
    state: BatchStats,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    noise: jax.Array | None = None,
    train: bool,
    statistics: str = "running",
    momentum: float = 0.99,
    epsilon: float = 1e-5,
    axis_name: Any = None,
    axis_index_groups: Any = None,
) -> tuple[jax.Array, BatchStats]:
    """The function of `jaxnorm.linen.normalizers.StochasticNorm`, which says what all of it means.

    It draws nothing: `noise` is [2, C], U and V, or None for none.

    Returns:
        y [N, *space, C], float32 or wider, and the new state: the old one unless `train`.

    Raises:
        TypeError, ValueError: as the layer.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxnorm.normalizers import initial_batch_stats, stochastic_norm
        >>> x, noise = jnp.array([[-1.0], [1.0]]), jnp.array([[2.0], [0.5]])
        >>> state = initial_batch_stats(1)
        >>> y, _ = stochastic_norm(x, state, train=True, noise=noise, epsilon=0.0)
        >>> y[:, 0].tolist()
        [-1.0, 3.0]
    """
    check_knobs(statistics, momentum, epsilon)
    check_input(x, len(state.mean))
    x = computed(x)
    mean, var = (along(each, x) for each in state)
    deviation = x - mean
    if train:
        check_values(x.shape, count(x, axis_name, axis_index_groups))
        center, spread, centered = moments(x, axis_name, axis_index_groups)
        pairs = zip(state, (center, spread), strict=True)
        state = BatchStats(*(averaged(old, batch, momentum) for old, batch in pairs))
        if statistics == "batch":
            var, deviation = spread, centered
    y = deviation * jax.lax.rsqrt(var + epsilon)
    if noise is not None:
        check_given("noise", noise.shape, (2, x.shape[-1]))
        u, v = (along(each, x) for each in noise)
        y = u * (y + v)
    return scaled(y, scale, bias), state


def check_knobs(statistics: str, momentum: float, epsilon: float) -> None:
    """Raise an error for a knob that is out of range."""
    check_choice("statistics", statistics, ("running", "batch"))
    check_knob("momentum", momentum, SHARE)
    check_knob("epsilon", epsilon, NOT_NEGATIVE)
