"""Stochastic normalization: a deterministic one with the noise of BatchNorm in its parameters."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnorm.normalizers.refusals import check_choice, check_count, check_given, check_knob
from jaxnorm.normalizers.samples import (
    Samples,
    affine,
    result_dtype,
    rows_of,
    rowwise,
    running,
)


class Moments(NamedTuple):
    """The running statistics.

    Attributes:
        mean: [C], in units of x.
        var: [C], biased, in units of x squared.
    """

    mean: jax.Array
    var: jax.Array


def initial_moments(channels: int, dtype: Any = jnp.float32) -> Moments:
    """The running statistics before any batch: mean 0, variance 1."""
    return Moments(jnp.zeros(channels, dtype), jnp.ones(channels, dtype))


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
    state: Moments,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    noise: jax.Array | None = None,
    use_running_average: bool = False,
    statistics: str = "running",
    axis: int = -1,
    momentum: float = 0.99,
    epsilon: float = 1e-5,
    dtype: Any = None,
    axis_name: Any = None,
    axis_index_groups: Any = None,
) -> tuple[jax.Array, Moments]:
    """See `jaxnorm.linen.normalizers.StochasticNorm`: the function behind the layers.

    Args:
        x: of at least two axes, samples first.
        state: the running statistics.
        scale: [C] or None.
        bias: [C] or None.
        noise: [2, C], U and V, or None for none.
        use_running_average: evaluate; the state comes back as it was.
        statistics: "running" or "batch", those that normalize in training.
        axis: of the channels.
        momentum: the weight of the old.
        epsilon: added to variances.
        dtype: of the result.
        axis_name: of the devices' axis.
        axis_index_groups: of that axis.

    Returns:
        (y, new state).

    Raises:
        TypeError: for an x that is not floating, a knob that is no number.
        ValueError: for shapes that do not fit, knobs out of range, one value per channel.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxnorm.normalizers.stochastic_norm import initial_moments, stochastic_norm
        >>> x, noise = jnp.array([[-1.0], [1.0]]), jnp.array([[2.0], [0.5]])
        >>> y, _ = stochastic_norm(x, initial_moments(1), noise=noise, epsilon=0.0)
        >>> y[:, 0].tolist()
        [-1.0, 3.0]
    """
    check_knobs(statistics, momentum, epsilon)
    rows, restore = rows_of(x, axis, len(state.mean))
    used = Moments(*(each.astype(rows.dtype) for each in state))
    deviation = rows - rowwise(used.mean)
    if not use_running_average:
        samples = Samples(rows, axis_name, axis_index_groups)
        center = samples.mean(rows)
        around = rows - rowwise(center)
        rest = samples.mean(around)  # what rounding has left of a large mean
        around = around - rowwise(rest)
        batch = Moments(center + rest, samples.mean(around**2))
        state = running(state, batch, momentum)
        if statistics == "batch":
            used, deviation = batch, around
    rows = deviation * rowwise(jax.lax.rsqrt(used.var + epsilon))
    if noise is not None:
        check_given("noise", noise.shape, (2, *used.mean.shape))
        u, v = noise.astype(rows.dtype)
        rows = rowwise(u) * (rows + rowwise(v))
    y = restore(affine(rows, scale, bias))
    return y.astype(result_dtype(dtype, x, scale, bias)), state


def check_knobs(statistics: str, momentum: float, epsilon: float) -> None:
    """Raise an error for a knob that is out of range."""
    check_choice("statistics", statistics, ("running", "batch"))
    check_knob("momentum", momentum, "a number in [0, 1]", lambda value: 0 <= value <= 1)
    check_knob("epsilon", epsilon, "a number >= 0", lambda value: value >= 0)
