"""`RMSNorm` of nnx in either framework's convention."""

from typing import Any

import jax.numpy as jnp
from flax import nnx

from jaxnorm.normalizers.conventions import DEFAULT, Name, convention_of
from jaxnorm.normalizers.rms_norm import rms_epsilon


class RMSNorm(nnx.RMSNorm):
    """`flax.nnx.RMSNorm` with the defaults of Flax or of PyTorch. As `RMSNorm` of linen.

    Args:
        num_features: the number of features.
        epsilon: as in linen. None stands for the spacing of numbers in ``dtype``, or in
            ``param_dtype``: an nnx layer knows its epsilon before its inputs.
        convention: "flax" (default) or "torch".
        **kwargs: the other arguments of `flax.nnx.RMSNorm`, ``rngs`` among them.

    Raises:
        ValueError: as in linen.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> import jaxnorm
        >>> layer = jaxnorm.nnx.normalizers.RMSNorm(2, convention="torch", rngs=nnx.Rngs(0))
        >>> layer(jnp.array([[1.0, 7.0]])).round(1)
        Array([[0.2, 1.4]], dtype=float32)
    """

    def __init__(
        self,
        num_features: int,
        *,
        epsilon: Any = DEFAULT,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        convention: Name = "flax",
        rngs: nnx.Rngs,
        **kwargs: Any,
    ) -> None:
        default = convention_of(convention).rms_epsilon
        super().__init__(
            num_features,
            epsilon=rms_epsilon(epsilon, default, dtype or param_dtype),
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
            **kwargs,
        )
        self.convention = convention
