"""Mode Normalization: samples that a learned gate puts together are normalized together."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnorm.normalizers.refusals import check_given, check_knob
from jaxnorm.normalizers.samples import (
    TINY,
    Samples,
    affine,
    result_dtype,
    rows_of,
    rowwise,
    running,
)


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
    use_running_average: bool = False,
    axis: int = -1,
    momentum: float = 0.9,
    epsilon: float = 1e-5,
    dtype: Any = None,
    axis_name: Any = None,
    axis_index_groups: Any = None,
) -> tuple[jax.Array, Modes]:
    """See `jaxnorm.linen.normalizers.ModeNorm`: the function behind the layers.

    Args:
        x: of at least two axes, samples first.
        state: the running statistics; their shape says how many modes there are.
        gate_kernel: [C, K].
        gate_bias: [K].
        scale: [C] or None.
        bias: [C] or None.
        use_running_average: evaluate; the state comes back as it was.
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
        >>> from jaxnorm.normalizers.mode_norm import initial_modes, mode_norm
        >>> x = jnp.array([[-5.0], [-3.0], [3.0], [5.0]])
        >>> gate = jnp.array([[-9.0, 9.0]])  # by the sign of x, all but surely
        >>> y, modes = mode_norm(x, initial_modes(2, 1), gate, jnp.zeros(2), momentum=0.0)
        >>> modes.mean[:, 0].tolist(), y[:, 0].round(1).tolist()
        ([-4.0, 4.0], [-1.0, 1.0, -1.0, 1.0])
    """
    modes, channels = state.mean.shape
    check_knobs(momentum, epsilon)
    check_given("gate_kernel", gate_kernel.shape, (channels, modes))
    check_given("gate_bias", gate_bias.shape, (modes,))
    rows, restore = rows_of(x, axis, channels)
    logits = jnp.dot(
        rows.mean(1), gate_kernel.astype(rows.dtype), precision=jax.lax.Precision.HIGHEST
    )
    gates = jax.nn.softmax(logits + gate_bias.astype(rows.dtype)[None])
    wide = Modes(*(each.astype(rows.dtype) for each in state))
    if use_running_average:
        center = wide.mean.mean(0)
        batch = wide._replace(mean=wide.mean - center[None])
        deviation = rows - rowwise(center)
    else:
        samples = Samples(rows, axis_name, axis_index_groups)
        center = samples.mean(rows)
        deviation = rows - rowwise(center)  # so that large means cost no digits
        batch = _statistics(deviation, gates, samples)
        mean = batch.mean + center[None]
        # The running averages of x and of x^2, of which the published variance is the difference:
        # the same number, without the difference.
        between = jax.lax.stop_gradient(momentum * (1 - momentum) * (wide.mean - mean) ** 2)
        state = running(state, batch._replace(mean=mean), momentum)
        state = state._replace(var=state.var + between.astype(state.var.dtype))
    out = jnp.zeros_like(rows)
    for k in range(modes):
        factor = jax.lax.rsqrt(batch.var[k] + epsilon)
        part = (deviation - rowwise(batch.mean[k])) * rowwise(factor)
        out = out + gates[:, k, None, None] * part
    y = restore(affine(out, scale, bias))
    return y.astype(result_dtype(dtype, x, scale, bias)), state


def check_knobs(momentum: float, epsilon: float) -> None:
    """Raise an error for a knob that is out of range."""
    check_knob("momentum", momentum, "a number in [0, 1]", lambda value: 0 <= value <= 1)
    check_knob("epsilon", epsilon, "a number >= 0", lambda value: value >= 0)


def _statistics(deviation: jax.Array, gates: jax.Array, samples: Samples) -> Modes:
    """Mean and variance of each mode, of samples weighted by their gates."""
    means, variances = [], []
    for k in range(gates.shape[1]):
        gate = gates[:, k, None, None]
        mass = samples.total(gate.sum()) * deviation.shape[1] + TINY
        mean = samples.sum(gate * deviation) / mass
        square = samples.sum(gate * (deviation - rowwise(mean)) ** 2)
        means.append(mean)
        variances.append(square / mass)
    return Modes(jnp.stack(means), jnp.stack(variances))


def gate_kernel_init(key: jax.Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> jax.Array:
    """As published: 1/K for each of K modes, and a little noise to tell them apart."""
    return 1 / shape[1] + 0.01 * jax.random.normal(key, shape, dtype)
