"""`LayerNorm` of linen in either framework's convention."""

import dataclasses
from typing import Any

import jax
from flax import linen as nn

from jaxnorm.linen.normalizers.base import flax_layer
from jaxnorm.normalizers.conventions import DEFAULT, Name, convention_of, epsilon_of


class LayerNorm(nn.LayerNorm):
    """`flax.linen.LayerNorm` with the defaults of Flax or of PyTorch.

    ::

        y = scale (x - mean) / sqrt(var + epsilon) + bias

    with mean and var (1 / N in both frameworks) of each sample over its features, in training and
    evaluation. Epsilon is 1e-6 in Flax and 1e-5 in PyTorch. PyTorch is given the shape of the last
    axes; ``normalized_shape=(H, C)`` there is ``reduction_axes=feature_axes=(-2, -1)`` here. In
    float32 at least, the variance about the mean (Flax's own default is not, see `BatchNorm`).

    Args:
        epsilon: what is added to the variance, in the units of x squared. Default: the
            convention's.
        use_fast_variance: default False.
        convention: (keyword) "flax" (default) or "torch".
        **kwargs: ``dtype``, ``param_dtype``, ``use_scale``, ``use_bias``, ``scale_init``,
            ``bias_init``, ``reduction_axes``, ``feature_axes``, ``axis_name``,
            ``axis_index_groups``, ``force_float32_reductions`` as in Flax.

    Call: x [..., C] and ``mask`` as in Flax; returns y in the shape of x.

    Raises:
        ValueError: for an unknown convention and an epsilon that is no such number; Flax's own for
            parameters of another shape.

    Transformations: all of Flax's and JAX's.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxnorm
        >>> layer = jaxnorm.linen.normalizers.LayerNorm(convention="torch")
        >>> layer.init_with_output(jax.random.key(0), jnp.array([[0.0, 2.0]]))[0].round(3)
        Array([[-1.,  1.]], dtype=float32)

    References:
        Ba, Kiros and Hinton, arXiv 1607.06450, equations 3 and 4; the defaults are measured.
    """

    epsilon: Any = DEFAULT
    use_fast_variance: bool = False
    convention: Name = dataclasses.field(default="flax", kw_only=True)

    @nn.compact
    def __call__(self, x: Any, *, mask: jax.Array | None = None) -> Any:
        """Normalize x."""
        epsilon = epsilon_of(self.epsilon, convention_of(self.convention).epsilon)
        return flax_layer(self, nn.LayerNorm, epsilon=epsilon)(x, mask=mask)
