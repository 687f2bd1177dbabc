"""Multiplicative noise that is always on, and the normalization that comes of it."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxnorm.checks import check_floating, check_inputs, check_matrix
from jaxnorm.normalizers.refusals import check_choice, check_given, check_knob
from jaxnorm.normalizers.samples import TINY, result_dtype
from jaxnorm.precision import at_least_float32

#: The distributions of the noise.
BERNOULLI, NORMAL = "bernoulli", "normal"


def noise_variance(rate: float) -> float:
    """The variance rate / (1 - rate) of the noise, whose mean is 1."""
    return rate / (1 - rate)


def draw_multiplicative_noise(
    key: jax.Array,
    shape: tuple[int, ...],
    rate: float = 0.5,
    distribution: str = BERNOULLI,
    dtype: Any = jnp.float32,
) -> jax.Array:
    """Noise of mean 1 and variance rate / (1 - rate).

    Args:
        key: of `jax.random`.
        shape: of the noise.
        rate: in [0, 1); the probability of a 0 if Bernoulli.
        distribution: "bernoulli", 0 or 1 / (1 - rate), or "normal".
        dtype: of the noise.

    Returns:
        The noise.

    Example:
        >>> import jax
        >>> from jaxnorm.normalizers.multiplicative_noise import draw_multiplicative_noise
        >>> noise = draw_multiplicative_noise(jax.random.key(0), (100_000,))
        >>> round(float(noise.mean()), 1), round(float(noise.var()), 1)
        (1.0, 1.0)
    """
    check_noise(rate, distribution)
    if distribution == NORMAL:
        return 1 + math.sqrt(noise_variance(rate)) * jax.random.normal(key, shape, dtype)
    return jax.random.bernoulli(key, 1 - rate, shape).astype(dtype) / (1 - rate)


def multiplicative_noise(x: jax.Array, noise: jax.Array) -> jax.Array:
    """See `jaxnorm.linen.normalizers.MultiplicativeNoise`: x times noise of the same shape.

    Args:
        x: activations.
        noise: in their shape.

    Returns:
        In the shape and dtype of x.

    Raises:
        TypeError: for an x that is not floating.
        ValueError: for noise of another shape.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxnorm.normalizers.multiplicative_noise import multiplicative_noise
        >>> multiplicative_noise(jnp.array([1.0, 3.0]), jnp.array([2.0, 0.0])).tolist()
        [2.0, 0.0]
    """
    check_floating(x=x)
    check_given("noise", noise.shape, x.shape)
    return x * noise.astype(x.dtype)


def noisy_dense(
    x: jax.Array,
    kernel: jax.Array,
    noise: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    rate: float = 0.5,
    threshold: bool = False,
    dtype: Any = None,
) -> jax.Array:
    """See `jaxnorm.linen.normalizers.NoisyDense`: the function behind the layers.

    Args:
        x: [..., I].
        kernel: [I, O].
        noise: [I, O], of mean 1 and variance rate / (1 - rate).
        scale: [O], beta, or None: the mean of the weights is not changed.
        bias: [O] or None.
        rate: of the noise.
        threshold: return the sign, with the derivative of its mean.
        dtype: of the result.

    Returns:
        [..., O].

    Raises:
        TypeError: for arrays that are not floating, a rate that is no number.
        ValueError: for shapes that do not fit, a rate out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxnorm.normalizers.multiplicative_noise import noisy_dense
        >>> kernel, noise = jnp.array([[1.0], [2.0]]), jnp.array([[2.0], [0.0]])
        >>> noisy_dense(jnp.array([[1.0, 1.0]]), kernel, noise).tolist()
        [[2.0]]
    """
    check_dense(x, kernel, rate, normalized=threshold or scale is not None)
    check_given("noise", noise.shape, kernel.shape)
    wide = at_least_float32(result_dtype(dtype, x, kernel))
    x_wide, w = x.astype(wide), kernel.astype(wide)
    factor = noise.astype(wide)
    if scale is not None:
        factor = factor + _shift(scale.astype(wide), rate)[None]
    z = _product(x_wide, w * factor)
    if bias is not None:
        z = z + bias.astype(wide).reshape(_last(z))
    if threshold:
        mean = 2 * positive_probability(x_wide, w, scale, bias, rate=rate) - 1
        sign = jnp.where(z >= 0, 1, -1).astype(wide)
        z = sign + (mean - jax.lax.stop_gradient(mean))
    return z.astype(result_dtype(dtype, x, kernel))


def positive_probability(
    x: jax.Array,
    kernel: jax.Array,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    rate: float = 0.5,
) -> jax.Array:
    """The probability that the neurons of `NoisyDense` are positive, over the noise.

        P = 1/2 (1 + erf(E z / sqrt(2 var z))),  var z = rate / (1 - rate) sum_i x_i^2 W_io^2

    Exact for normal noise; for Bernoulli noise what the central limit theorem makes of many inputs.
    Without a bias it is the same for c W as for W, for every c > 0, and for c x.

    Args:
        x: [..., I].
        kernel: [I, O].
        scale: [O] or None, as in `noisy_dense`.
        bias: [O] or None.
        rate: of the noise, in (0, 1).

    Returns:
        [..., O].

    Raises:
        TypeError: for arrays that are not floating, a rate that is no number.
        ValueError: for shapes that do not fit, a rate out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxnorm.normalizers.multiplicative_noise import positive_probability
        >>> x, kernel = jnp.array([[1.0, -1.0]]), jnp.array([[3.0], [1.0]])
        >>> [round(float(positive_probability(x, c * kernel)[0, 0]), 4) for c in (1, 1000)]
        [0.7365, 0.7365]
    """
    check_dense(x, kernel, rate, normalized=True)
    wide = at_least_float32(x.dtype)
    x, w = x.astype(wide), kernel.astype(wide)
    variance = noise_variance(rate)
    mean = _product(x, w)
    if scale is not None:
        mean = mean * (1 + _shift(scale.astype(wide), rate)).reshape(_last(mean))
    if bias is not None:
        mean = mean + bias.astype(wide).reshape(_last(mean))
    square = variance * _product(x**2, w**2)
    return (1 + jax.lax.erf(mean * jax.lax.rsqrt(2 * square + TINY))) / 2


def check_noise(rate: float, distribution: str = BERNOULLI) -> None:
    """Raise an error for a knob that is out of range."""
    check_knob("rate", rate, "a number in [0, 1)", lambda value: 0 <= value < 1)
    check_choice("distribution", distribution, (BERNOULLI, NORMAL))


def check_dense(x: jax.Array, kernel: jax.Array, rate: float, *, normalized: bool) -> None:
    """Raise an error for inputs that do not fit."""
    check_floating(x=x, kernel=kernel)
    check_matrix("kernel", kernel.shape, "[I, O]")
    check_inputs(x.shape, kernel.shape[0])
    check_noise(rate)
    if normalized and rate == 0:
        raise ValueError(
            "rate: got 0, expected a number > 0 where the noise normalizes; without noise leave "
            "out scale and threshold"
        )


def _shift(scale: jax.Array, rate: float) -> jax.Array:
    """What is added to the noise so that the mean of z is `scale` in units of its deviation."""
    return scale * math.sqrt(2 * noise_variance(rate)) - 1


def _last(z: jax.Array) -> tuple[int, ...]:
    return (1,) * (z.ndim - 1) + (-1,)


def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jnp.dot(x, kernel, precision=jax.lax.Precision.HIGHEST)
