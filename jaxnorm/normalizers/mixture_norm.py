"""Mixture Normalization: each sample by the Gaussians of a mixture that it may have come from."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnorm.normalizers.refusals import check_count, check_given, check_knob
from jaxnorm.normalizers.samples import (
    TINY,
    Samples,
    affine,
    result_dtype,
    rows_of,
    rowwise,
    running,
)


class Mixture(NamedTuple):
    """K Gaussians with diagonal covariances.

    Attributes:
        weight: [K], the shares lambda of the components; they sum to one.
        mean: [K, C], in units of x.
        var: [K, C], in units of x squared.
    """

    weight: jax.Array
    mean: jax.Array
    var: jax.Array


def initial_mixture(components: int, channels: int, dtype: Any = jnp.float32) -> Mixture:
    """The running mixture before any batch: equal shares, mean 0, variance 1."""
    return Mixture(
        jnp.full((components,), 1 / components, dtype),
        jnp.zeros((components, channels), dtype),
        jnp.ones((components, channels), dtype),
    )


def mixture_norm(
    x: jax.Array,
    state: Mixture,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    use_running_average: bool = False,
    steps: int = 5,
    floor: float = 1e-3,
    responsibility_gradient: bool = False,
    seeds: jax.Array | None = None,
    axis: int = -1,
    momentum: float = 0.99,
    epsilon: float = 1e-5,
    dtype: Any = None,
    axis_name: Any = None,
    axis_index_groups: Any = None,
) -> tuple[jax.Array, Mixture]:
    """See `jaxnorm.linen.normalizers.MixtureNorm`: the function behind the layers.

    Args:
        x: of at least two axes, samples first.
        state: the running mixture; its shape says how many components there are.
        scale: [C] or None.
        bias: [C] or None.
        use_running_average: evaluate; the state comes back as it was.
        steps: of EM.
        floor: of a component's variance within EM, in units of the channel's.
        responsibility_gradient: whether gradients flow through the responsibilities.
        seeds: [K, C], means where EM begins, in units of x.
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
        >>> from jaxnorm.normalizers.mixture_norm import initial_mixture, mixture_norm
        >>> x = jnp.array([[-5.0], [-4.0], [4.0], [5.0]])
        >>> y, mixture = mixture_norm(x, initial_mixture(2, 1), momentum=0.0)
        >>> mixture.mean[:, 0].round(2).tolist()
        [-4.5, 4.5]
        >>> [round(v, 2) for v in y[:, 0].tolist()]  # each half by itself, times 1 / sqrt(1 / 2)
        [-1.41, 1.41, -1.41, 1.41]
    """
    check_knobs(len(state.weight), steps, floor, momentum, epsilon)
    rows, restore = rows_of(x, axis, state.mean.shape[1])
    wide = Mixture(*(each.astype(rows.dtype) for each in state))
    if use_running_average:
        center = (wide.weight[:, None] * wide.mean).sum(0)
        deviation = rows - rowwise(center)
        apart = wide.mean - center[None]
        spread = (wide.weight[:, None] * (wide.var + apart**2)).sum(0)
        fitted = wide._replace(mean=apart)
        share = _responsibilities(deviation, fitted, spread, floor, epsilon)
    else:
        samples = Samples(rows, axis_name, axis_index_groups)
        center = samples.mean(rows)
        deviation = rows - rowwise(center)
        spread = samples.mean(deviation**2)
        begin = _begin(len(state.weight), spread, center, seeds)

        def step(mixture: Mixture, _: None) -> tuple[Mixture, None]:
            share = _responsibilities(deviation, mixture, spread, floor, epsilon)
            return _fit(deviation, share, samples), None

        mixture, _ = jax.lax.scan(step, begin, length=steps)
        share = _responsibilities(deviation, mixture, spread, floor, epsilon)
        if not responsibility_gradient:
            share = jax.lax.stop_gradient(share)
        fitted = _fit(deviation, share, samples)
        state = running(state, fitted._replace(mean=fitted.mean + center[None]), momentum)
    rows = jnp.zeros_like(deviation)
    for k in range(len(fitted.weight)):
        factor = jax.lax.rsqrt(fitted.var[k] + epsilon)
        part = (deviation - rowwise(fitted.mean[k])) * rowwise(factor)
        rows = rows + (share[k] * jax.lax.rsqrt(fitted.weight[k] + TINY))[..., None] * part
    y = restore(affine(rows, scale, bias))
    return y.astype(result_dtype(dtype, x, scale, bias)), state


def check_knobs(components: int, steps: int, floor: float, momentum: float, epsilon: float) -> None:
    """Raise an error for a knob that is out of range."""
    check_count("components", components, 1)
    check_count("steps", steps, 0)
    check_knob("floor", floor, "a number > 0", lambda value: value > 0)
    check_knob("momentum", momentum, "a number in [0, 1]", lambda value: 0 <= value <= 1)
    check_knob("epsilon", epsilon, "a number >= 0", lambda value: value >= 0)


def _begin(
    components: int, spread: jax.Array, center: jax.Array, seeds: jax.Array | None
) -> Mixture:
    """Where EM begins: means spread over the batch in all channels at once, or given."""
    if seeds is None:
        middles = (jnp.arange(components, dtype=spread.dtype) + 0.5) / components
        scores = jax.scipy.special.ndtri(middles)
        # A channel without spread would have an endless derivative of the root.
        root = jnp.sqrt(jnp.where(spread > 0, spread, 1))
        deviation = jnp.where(spread > 0, root, 0)
        mean = scores[:, None] * deviation[None]
    else:
        check_given("seeds", seeds.shape, (components, *center.shape))
        mean = seeds.astype(spread.dtype) - center[None]
    weight = jnp.full((components,), 1 / components, spread.dtype)
    return Mixture(weight, mean, jnp.broadcast_to(spread[None], mean.shape))


def _responsibilities(
    deviation: jax.Array, mixture: Mixture, spread: jax.Array, floor: float, epsilon: float
) -> jax.Array:
    """The E step, p(k|x), [K, samples, positions], in units of each channel's spread.

    So no channel is louder than another, and the floor means the same to all.
    """
    unit = spread + epsilon

    def logarithm(weight: jax.Array, mean: jax.Array, var: jax.Array) -> jax.Array:
        relative = var / unit + floor
        square = (deviation - rowwise(mean)) ** 2 / rowwise(unit * relative)
        return jnp.log(weight + TINY) - (square.sum(-1) + jnp.log(relative).sum()) / 2

    return jax.nn.softmax(jax.vmap(logarithm)(*mixture), axis=0)


def _fit(deviation: jax.Array, share: jax.Array, samples: Samples) -> Mixture:
    """The M step: shares, means and variances of the components."""
    weight, means, variances = [], [], []
    for each in share:
        mass = samples.total(each.sum()) + TINY
        mean = samples.sum(each[..., None] * deviation) / mass
        square = samples.sum(each[..., None] * (deviation - rowwise(mean)) ** 2)
        weight.append(mass / samples.count)
        means.append(mean)
        variances.append(square / mass)
    return Mixture(jnp.stack(weight), jnp.stack(means), jnp.stack(variances))
