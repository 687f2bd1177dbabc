"""Multiplicative noise that is always on, as layers of Flax linen."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxnorm.normalizers.multiplicative_noise import (
    BERNOULLI,
    check_noise,
    draw_multiplicative_noise,
    multiplicative_noise,
    noisy_dense,
)


class MultiplicativeNoise(nn.Module):
    """Multiplies activations by noise of mean 1, in training and in evaluation.

        y = x xi,    E xi = 1,  var xi = rate / (1 - rate)

    One draw for every entry of x. A linear layer behind it has the noise of `DropConnect` with one
    draw per input and sample: the same mean and variance of every z, so the same normalization.

    Args:
        rate: in [0, 1), default 0.5.
        distribution: "bernoulli" (default), where xi is 0 with probability `rate` and otherwise
            1 / (1 - rate), which is Dropout that is never off; or "normal".

    Random numbers: of ``rngs={"noise": key}``, at every call.

    Returns:
        What a call returns: y in the shape and dtype of x. Not at initialization, where it is x.

    Raises:
        TypeError: for an x that is not floating, a rate that is no number.
        ValueError: for noise of another shape than x, a rate or distribution out of range.

    Transformations: any.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxnorm
        >>> layer = jaxnorm.linen.normalizers.MultiplicativeNoise(rate=0.5)
        >>> y = layer.apply({}, jnp.ones((1, 10_000)), rngs={"noise": jax.random.key(0)})
        >>> sorted(set(y[0].tolist()))
        [0.0, 2.0]

    References:
        As `DropConnect`.
    """

    rate: float = 0.5
    distribution: str = BERNOULLI

    @nn.compact
    def __call__(self, x: jax.Array, *, noise: jax.Array | None = None) -> jax.Array:
        """Multiply x by the noise, which is drawn unless it is given."""
        check_noise(self.rate, self.distribution)
        if noise is None and self.is_initializing():
            return x
        if noise is None:
            key = self.make_rng("noise")
            noise = draw_multiplicative_noise(key, x.shape, self.rate, self.distribution)
        return multiplicative_noise(x, noise)


class DropConnect(nn.Module):
    """A dense layer whose weights are multiplied by noise, in training and in evaluation.

        z_o = sum_i (xi_io + a_o) W_io x_i + b_o,    a_o = scale_o sqrt(2 v) - 1
        E xi = 1,  var xi = v = rate / (1 - rate)

    **It normalizes itself.** Over the noise z has the mean ``scale sqrt(2 v) sum_i W_io x_i + b_o``
    and the variance ``v sum_i W_io^2 x_i^2``. The noise grows with the weights. So what a threshold
    sees, z in units of its deviation, does not know how long W_o is:

        P(z_o > 0) = 1/2 (1 + erf(scale_o sum_i W_io x_i / sqrt(sum_i W_io^2 x_i^2)))     b = 0

    exactly for normal noise, and for Bernoulli noise as far as the central limit theorem holds. For
    x of -1 and 1 that is erf of ``scale_o W_o x / |W_o|``: Weight Normalization, with `scale` as
    the length of its weights. The gradient of P is at a right angle to W_o, as there.

    With ``threshold=True`` the output is the sign of z, -1 or 1, and its derivative is that of its
    mean 2 P - 1 (a straight-through estimator without variance of its own; biased in deep nets).
    Without, it is z, for an activation of yours.

    Train and eval are the same. Predictions are averages over calls.

    Args:
        features: O.
        rate: in [0, 1), default 0.5; with a scale and with a threshold > 0.
        distribution: "bernoulli" (default) or "normal".
        threshold: see above, default False.
        use_scale: whether the mean is shifted by a_o as above, default True; False is plain
            DropConnect that is never off, a = 0.
        use_bias: whether there is a b, default True.
        dtype: of the result, default the widest of x and the kernel.
        param_dtype: of the parameters, default float32.
        kernel_init, bias_init: as `flax.linen.Dense`.
        scale_init: default ones, as published.

    Collections: params {kernel [I, O], scale [O], bias [O]}. PyTorch: weight [O, I].
    Random numbers: of ``rngs={"noise": key}``, [I, O] at every call, the same for all samples.

    Returns:
        What a call returns: [..., O].

    Raises:
        TypeError: for an x that is not floating, a rate that is no number.
        ValueError: for an x or noise that does not fit, a rate or distribution out of range.

    Transformations: any. Dtypes: computed in at least float32.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxnorm
        >>> layer = jaxnorm.linen.normalizers.DropConnect(2, threshold=True)
        >>> x = jnp.sign(jax.random.normal(jax.random.key(0), (5, 8)))
        >>> variables = layer.init(jax.random.key(1), x)
        >>> y = layer.apply(variables, x, rngs={"noise": jax.random.key(2)})
        >>> sorted(set(y.ravel().tolist()))
        [-1.0, 1.0]

    References:
        Detorakis, Dutta, Khanna, Jerry, Datta, Neftci, "Inherent Weight Normalization in Stochastic
        Neural Networks" (Neural Sampling Machines), NeurIPS 2019, arXiv 1910.12316. Read were the
        abstract, the introduction and the authors' code (github.com/nmi-lab/
        neural_sampling_machines, model.py), which has a_o, scale and P as here, P for inputs of -1
        and 1; the derivation above is ours. Their noise is per input and sample and has, Bernoulli,
        the mean 1 - rate; their convolution is not here: put `MultiplicativeNoise` before one.
    """

    features: int
    rate: float = 0.5
    distribution: str = BERNOULLI
    threshold: bool = False
    use_scale: bool = True
    use_bias: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32
    kernel_init: Any = nn.initializers.lecun_normal()
    scale_init: Any = nn.initializers.ones
    bias_init: Any = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array, *, noise: jax.Array | None = None) -> jax.Array:
        """Apply the layer with the noise [I, O], which is drawn unless it is given."""
        check_noise(self.rate, self.distribution)
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        scale = bias = None
        if self.use_scale:
            scale = self.param("scale", self.scale_init, shape[1:], self.param_dtype)
        if self.use_bias:
            bias = self.param("bias", self.bias_init, shape[1:], self.param_dtype)
        if noise is None and self.is_initializing():
            noise = jnp.ones(shape)
        elif noise is None:
            key = self.make_rng("noise")
            noise = draw_multiplicative_noise(key, shape, self.rate, self.distribution)
        return noisy_dense(
            x,
            kernel,
            noise,
            scale,
            bias,
            rate=self.rate,
            threshold=self.threshold,
            dtype=self.dtype,
        )
