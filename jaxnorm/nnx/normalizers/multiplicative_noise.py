"""Multiplicative noise that is always on, as layers of Flax nnx."""

from typing import Any

import jax
from flax import nnx

from jaxnorm.nnx.normalizers.running import FLOAT32, ONES, ZEROS, key_of, stream
from jaxnorm.normalizers.multiplicative_noise import (
    BERNOULLI,
    check_noise,
    draw_multiplicative_noise,
    multiplicative_noise,
    noisy_dense,
)


class MultiplicativeNoise(nnx.Module):
    """As `jaxnorm.linen.normalizers.MultiplicativeNoise`, as a module of nnx.

    Args:
        rate: in [0, 1).
        distribution: "bernoulli" or "normal".
        rngs: with a stream "noise" (or "default"); or in the call.

    Raises:
        TypeError: for an x that is not floating, a rate that is no number.
        ValueError: for noise of another shape than x, a rate or distribution out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> import jaxnorm
        >>> layer = jaxnorm.nnx.normalizers.MultiplicativeNoise(0.5, rngs=nnx.Rngs(0))
        >>> sorted(set(layer(jnp.ones((1, 10_000)))[0].tolist()))
        [0.0, 2.0]
    """

    def __init__(
        self, rate: float = 0.5, *, distribution: str = BERNOULLI, rngs: nnx.Rngs | None = None
    ) -> None:
        check_noise(rate, distribution)
        self.rate, self.distribution = rate, distribution
        self.rngs = stream(rngs, "noise")

    def __call__(
        self, x: jax.Array, *, noise: jax.Array | None = None, rngs: Any = None
    ) -> jax.Array:
        """Multiply x by the noise, which is drawn unless it is given."""
        if noise is None:
            key = key_of(rngs, self)
            noise = draw_multiplicative_noise(key, x.shape, self.rate, self.distribution)
        return multiplicative_noise(x, noise)


class DropConnect(nnx.Module):
    """As `jaxnorm.linen.normalizers.DropConnect`, as a module of nnx.

    Args:
        in_features: I.
        out_features: O.
        rate: in [0, 1).
        distribution: "bernoulli" or "normal".
        threshold: return the sign, with the derivative of its mean.
        use_scale: whether the mean is shifted so that the noise normalizes.
        use_bias: whether there is a bias.
        dtype: of the result.
        param_dtype: of the parameters.
        kernel_init, scale_init, bias_init: of [I, O], [O] and [O].
        rngs: of the parameters, and with a stream "noise" (or "default") of the noise.

    Raises:
        TypeError: for an x that is not floating, a rate that is no number.
        ValueError: for an x or noise that does not fit, a rate or distribution out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> import jaxnorm
        >>> layer = jaxnorm.nnx.normalizers.DropConnect(8, 200, threshold=True, rngs=nnx.Rngs(0))
        >>> sorted(set(layer(jnp.ones((1, 8)))[0].tolist()))
        [-1.0, 1.0]
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        rate: float = 0.5,
        distribution: str = BERNOULLI,
        threshold: bool = False,
        use_scale: bool = True,
        use_bias: bool = True,
        dtype: Any = None,
        param_dtype: Any = FLOAT32,
        kernel_init: Any = nnx.initializers.lecun_normal(),
        scale_init: Any = ONES,
        bias_init: Any = ZEROS,
        rngs: nnx.Rngs,
    ) -> None:
        check_noise(rate, distribution)
        shape = (in_features, out_features)
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape, param_dtype))
        self.scale = self.bias = nnx.data(None)
        if use_scale:
            self.scale = nnx.Param(scale_init(rngs.params(), shape[1:], param_dtype))
        if use_bias:
            self.bias = nnx.Param(bias_init(rngs.params(), shape[1:], param_dtype))
        self.rate, self.distribution = rate, distribution
        self.threshold, self.dtype = threshold, dtype
        self.rngs = stream(rngs, "noise")

    def __call__(
        self, x: jax.Array, *, noise: jax.Array | None = None, rngs: Any = None
    ) -> jax.Array:
        """Apply the layer with the noise [I, O], which is drawn unless it is given."""
        kernel = self.kernel[...]
        if noise is None:
            key = key_of(rngs, self)
            noise = draw_multiplicative_noise(key, kernel.shape, self.rate, self.distribution)
        return noisy_dense(
            x,
            kernel,
            noise,
            None if self.scale is None else self.scale[...],
            None if self.bias is None else self.bias[...],
            rate=self.rate,
            threshold=self.threshold,
            dtype=self.dtype,
        )
