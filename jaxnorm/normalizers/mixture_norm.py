"""Mixture Normalization: each sample by the Gaussians of a mixture that it may have come from."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnorm.normalizers.channels import (
    TINY,
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
from jaxnorm.normalizers.checks import (
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    check_count,
    check_given,
    check_knob,
    check_values,
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
    train: bool,
    steps: int = 5,
    floor: float = 1e-3,
    responsibility_gradient: bool = False,
    seeds: jax.Array | None = None,
    momentum: float = 0.99,
    epsilon: float = 1e-5,
    axis_name: Any = None,
    axis_index_groups: Any = None,
) -> tuple[jax.Array, Mixture]:
    """The function of `jaxnorm.linen.normalizers.MixtureNorm`, which says what all of it means.

    The shape of the state says how many components there are.

    Returns:
        y [N, *space, C], float32 or wider, and the new state: the old one unless `train`.

    Raises:
        TypeError, ValueError: as the layer.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxnorm.normalizers.mixture_norm import initial_mixture, mixture_norm
        >>> x = jnp.array([[-5.0], [-4.0], [4.0], [5.0]])
        >>> y, mixture = mixture_norm(x, initial_mixture(2, 1), train=True, momentum=0.0)
        >>> mixture.mean[:, 0].round(2).tolist()
        [-4.5, 4.5]
        >>> [round(v, 2) for v in y[:, 0].tolist()]  # each half by itself, times 1 / sqrt(1 / 2)
        [-1.41, 1.41, -1.41, 1.41]
    """
    check_knobs(len(state.weight), steps, floor, momentum, epsilon)
    check_input(x, state.mean.shape[1])
    x = computed(x)
    if not train:
        used = Mixture(*map(computed, state))
        center = (used.weight[:, None] * used.mean).sum(0)
        apart = used.mean - center[None]
        spread = (used.weight[:, None] * (used.var + apart**2)).sum(0)
        deviation, fitted = x - along(center, x), used._replace(mean=apart)
        share = _responsibilities(deviation, fitted, spread, floor, epsilon)
    else:
        check_values(x.shape, count(x, axis_name, axis_index_groups))
        over = over_devices(axis_name, axis_index_groups)
        center, spread, deviation = moments(x, axis_name, axis_index_groups)
        center, spread = center.reshape(-1), spread.reshape(-1)
        begin = _begin(len(state.weight), spread, center, seeds)

        def step(mixture: Mixture, _: None) -> tuple[Mixture, None]:
            share = _responsibilities(deviation, mixture, spread, floor, epsilon)
            return _fit(deviation, share, over), None

        mixture, _ = jax.lax.scan(step, begin, length=steps)
        share = _responsibilities(deviation, mixture, spread, floor, epsilon)
        if not responsibility_gradient:
            share = jax.lax.stop_gradient(share)
        fitted = _fit(deviation, share, over)
        new = fitted._replace(mean=fitted.mean + center[None])
        pairs = zip(state, new, strict=True)
        state = Mixture(*(averaged(old, batch, momentum) for old, batch in pairs))
    y = jnp.zeros_like(x)
    for k in range(len(fitted.weight)):
        part = deviation - along(fitted.mean[k], x)
        part = part * along(jax.lax.rsqrt(fitted.var[k] + epsilon), x)
        y = y + (share[k] * jax.lax.rsqrt(fitted.weight[k] + TINY))[..., None] * part
    return scaled(y, scale, bias), state


def check_knobs(components: int, steps: int, floor: float, momentum: float, epsilon: float) -> None:
    """Raise an error for a knob that is out of range."""
    check_count("components", components, 1)
    check_count("steps", steps, 0)
    check_knob("floor", floor, POSITIVE)
    check_knob("momentum", momentum, SHARE)
    check_knob("epsilon", epsilon, NOT_NEGATIVE)


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
    """The E step, p(k|x), [K, N, *space], in units of each channel's spread.

    So no channel is louder than another, and the floor means the same to all.
    """
    unit = spread + epsilon

    def logarithm(weight: jax.Array, mean: jax.Array, var: jax.Array) -> jax.Array:
        relative = var / unit + floor
        square = (deviation - along(mean, deviation)) ** 2
        square = square / along(unit * relative, deviation)
        return jnp.log(weight + TINY) - (square.sum(-1) + jnp.log(relative).sum()) / 2

    return jax.nn.softmax(jax.vmap(logarithm)(*mixture), axis=0)


def _fit(deviation: jax.Array, share: jax.Array, over: Any) -> Mixture:
    """The M step: shares, means and variances of the components."""
    each = (weighted_moments(deviation, weight, over) for weight in share)
    return Mixture(*map(jnp.stack, zip(*each, strict=True)))
