"""Mode Normalization: samples that a learned gate puts together are normalized together."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnorm.normalizers.channels import (
    along,
    averaged,
    check_input,
    computed,
    count,
    moments,
    over_devices,
    scaled,
    weighted_moments,
)
from jaxnorm.normalizers.checks import NOT_NEGATIVE, SHARE, check_given, check_knob, check_values


class Modes(NamedTuple):
    """The statistics of K modes.

    Attributes:
        mean: [K, C], in units of x.
        var: [K, C], in units of x squared.
    """

    mean: jax.Array
    var: jax.Array


def initial_modes(modes: int, channels: int, dtype: Any = jnp.float32) -> Modes:
    """The running statistics before any batch: mean 0, variance 1."""
    return Modes(jnp.zeros((modes, channels), dtype), jnp.ones((modes, channels), dtype))


def mode_norm(
    x: jax.Array,
    state: Modes,
    gate_kernel: jax.Array,
    gate_bias: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    train: bool,
    momentum: float = 0.9,
    epsilon: float = 1e-5,
    axis_name: Any = None,
    axis_index_groups: Any = None,
) -> tuple[jax.Array, Modes]:
    """The function of `jaxnorm.linen.normalizers.ModeNorm`, which says what all of it means.

    The shape of the state says how many modes there are.

    Returns:
        y [N, *space, C], float32 or wider, and the new state: the old one unless `train`.

    Raises:
        TypeError, ValueError: as the layer.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxnorm.normalizers.mode_norm import initial_modes, mode_norm
        >>> x = jnp.array([[-5.0], [-3.0], [3.0], [5.0]])
        >>> gate = jnp.array([[-9.0, 9.0]])  # by the sign of x, all but surely
        >>> y, modes = mode_norm(
        ...     x, initial_modes(2, 1), gate, jnp.zeros(2), train=True, momentum=0.0
        ... )
        >>> modes.mean[:, 0].tolist(), y[:, 0].round(1).tolist()
        ([-4.0, 4.0], [-1.0, 1.0, -1.0, 1.0])
    """
    modes, channels = state.mean.shape
    check_knobs(momentum, epsilon)
    check_given("gate_kernel", gate_kernel.shape, (channels, modes))
    check_given("gate_bias", gate_bias.shape, (modes,))
    check_input(x, channels)
    x = computed(x)
    pooled = x.reshape(len(x), -1, channels).mean(1)
    logits = jnp.dot(pooled, computed(gate_kernel), precision=jax.lax.Precision.HIGHEST)
    gates = jax.nn.softmax(logits + along(gate_bias, logits))
    shares = gates.T.reshape(modes, len(x), *(1,) * (x.ndim - 2))
    used = Modes(*map(computed, state))
    if not train:
        center = used.mean.mean(0)
        batch = used._replace(mean=used.mean - center[None])
        deviation = x - along(center, x)
    else:
        check_values(x.shape, count(x, axis_name, axis_index_groups))
        over = over_devices(axis_name, axis_index_groups)
        # Without its mean, so that a large one costs no digits.
        center, _, deviation = moments(x, axis_name, axis_index_groups)
        batch = _statistics(deviation, shares, over)
        mean = batch.mean + center.reshape(1, -1)
        # The running averages of x and of x^2, of which the published variance is the difference:
        # the same number, without the difference.
        var = averaged(used.var, batch.var, momentum)
        var = var + momentum * (1 - momentum) * jax.lax.stop_gradient(used.mean - mean) ** 2
        state = Modes(averaged(state.mean, mean, momentum), var.astype(state.var.dtype))
    y = jnp.zeros_like(x)
    for k in range(modes):
        part = deviation - along(batch.mean[k], x)
        part = part * along(jax.lax.rsqrt(batch.var[k] + epsilon), x)
        y = y + shares[k][..., None] * part
    return scaled(y, scale, bias), state


def check_knobs(momentum: float, epsilon: float) -> None:
    """Raise an error for a knob that is out of range."""
    check_knob("momentum", momentum, SHARE)
    check_knob("epsilon", epsilon, NOT_NEGATIVE)


def _statistics(deviation: jax.Array, shares: jax.Array, over: Any) -> Modes:
    """Mean and variance of each mode, of samples weighted by their gates."""
    each = (weighted_moments(deviation, share, over)[1:] for share in shares)
    return Modes(*map(jnp.stack, zip(*each, strict=True)))


def gate_kernel_init(key: jax.Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> jax.Array:
    """As published: 1/K for each of K modes, and a little noise to tell them apart."""
    return 1 / shape[1] + 0.01 * jax.random.normal(key, shape, dtype)
