"""`LayerNorm` of nnx in either framework's convention."""

from typing import Any

from flax import nnx

from jaxnorm.normalizers.conventions import DEFAULT, Name, convention_of, epsilon_of


class LayerNorm(nnx.LayerNorm):
    """`flax.nnx.LayerNorm` with the defaults of Flax or of PyTorch. As `LayerNorm` of linen.

    Args:
        num_features: the number of features.
        epsilon: as in linen.
        use_fast_variance: default False.
        convention: "flax" (default) or "torch".
        **kwargs: the other arguments of `flax.nnx.LayerNorm`, ``rngs`` among them.

    Raises:
        ValueError: as in linen.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> import jaxnorm
        >>> layer = jaxnorm.nnx.normalizers.LayerNorm(2, convention="torch", rngs=nnx.Rngs(0))
        >>> layer(jnp.array([[0.0, 2.0]])).round(3)
        Array([[-1.,  1.]], dtype=float32)
    """

    def __init__(
        self,
        num_features: int,
        *,
        epsilon: Any = DEFAULT,
        use_fast_variance: bool = False,
        convention: Name = "flax",
        rngs: nnx.Rngs,
        **kwargs: Any,
    ) -> None:
        default = convention_of(convention).epsilon
        super().__init__(
            num_features,
            epsilon=epsilon_of(epsilon, default),  # pyright: ignore[reportArgumentType]
            use_fast_variance=use_fast_variance,
            rngs=rngs,
            **kwargs,
        )
        self.convention = convention
