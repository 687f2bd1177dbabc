"""`RMSNorm` of linen in either framework's convention."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxnorm.linen.normalizers.base import flax_layer
from jaxnorm.normalizers.conventions import DEFAULT, Name, convention_of
from jaxnorm.normalizers.rms_norm import rms_epsilon


class RMSNorm(nn.RMSNorm):
    """`flax.linen.RMSNorm` with the defaults of Flax or of PyTorch.

    ::

        y = scale x / sqrt(mean(x^2) + epsilon)

    with the mean of each sample over its features, in training and evaluation, in float32 at least.
    Epsilon is 1e-6 in Flax. In PyTorch it is None: the spacing of numbers around 1 in the dtype in
    which it computes, 2.2e-16 in float64 and 1.2e-7 in float32 and below (where its documentation
    says that of the inputs).

    Args:
        epsilon: what is added to the mean square, in the units of x squared; None as in PyTorch.
            Default: the convention's.
        convention: (keyword) "flax" (default) or "torch".
        **kwargs: ``dtype``, ``param_dtype``, ``use_scale``, ``scale_init``, ``reduction_axes``,
            ``feature_axes``, ``axis_name``, ``axis_index_groups``, ``force_float32_reductions`` as
            in Flax.

    Call: x [..., C] and ``mask`` as in Flax; returns y in the shape of x.

    Raises:
        ValueError: for an unknown convention and an epsilon that is no such number; Flax's own for
            parameters of another shape.

    Transformations: all of Flax's and JAX's.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxnorm
        >>> layer = jaxnorm.linen.normalizers.RMSNorm(convention="torch")
        >>> layer.init_with_output(jax.random.key(0), jnp.array([[1.0, 7.0]]))[0].round(1)
        Array([[0.2, 1.4]], dtype=float32)

    References:
        Zhang and Sennrich, arXiv 1910.07467, equation 4; the defaults are measured.
    """

    epsilon: Any = DEFAULT
    convention: Name = dataclasses.field(default="flax", kw_only=True)

    @nn.compact
    def __call__(self, x: Any, *, mask: jax.Array | None = None) -> Any:
        """Normalize x."""
        default = convention_of(self.convention).rms_epsilon
        epsilon = rms_epsilon(self.epsilon, default, self.dtype or jnp.result_type(x))
        return flax_layer(self, nn.RMSNorm, epsilon=epsilon)(x, mask=mask)
