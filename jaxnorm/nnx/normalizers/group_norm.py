"""`GroupNorm` of nnx in either framework's convention."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxnorm.normalizers import checks
from jaxnorm.normalizers.conventions import DEFAULT, Name, convention_of, epsilon_of, groups_of


class GroupNorm(nnx.GroupNorm):
    """`flax.nnx.GroupNorm` with the defaults of Flax or of PyTorch. As `GroupNorm` of linen.

    Args:
        num_features: the number of channels.
        num_groups: as in linen.
        group_size: as in linen.
        epsilon: as in linen.
        use_fast_variance: default False.
        convention: "flax" (default) or "torch".
        **kwargs: the other arguments of `flax.nnx.GroupNorm`, ``rngs`` among them.

    Raises:
        ValueError: as in linen.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> import jaxnorm
        >>> layer = jaxnorm.nnx.normalizers.GroupNorm(4, 2, rngs=nnx.Rngs(0))
        >>> layer(jnp.array([[0.0, 2.0, 10.0, 20.0]])).round(3)
        Array([[-1.,  1., -1.,  1.]], dtype=float32)
    """

    def __init__(
        self,
        num_features: int,
        num_groups: Any = DEFAULT,
        group_size: int | None = None,
        *,
        epsilon: Any = DEFAULT,
        use_fast_variance: bool = False,
        convention: Name = "flax",
        rngs: nnx.Rngs,
        **kwargs: Any,
    ) -> None:
        defaults = convention_of(convention)
        if group_size is None:
            num_groups = groups_of(num_groups, defaults.groups, num_features)
        elif num_groups == DEFAULT:
            num_groups = None
        super().__init__(
            num_features,
            num_groups,
            group_size,
            epsilon=epsilon_of(epsilon, defaults.epsilon),  # pyright: ignore[reportArgumentType]
            use_fast_variance=use_fast_variance,
            rngs=rngs,
            **kwargs,
        )
        self.num_features, self.convention = num_features, convention

    def __call__(self, x: Any, *, mask: jax.Array | None = None) -> Any:
        """Normalize x."""
        shape = jnp.shape(x)
        checks.check_rank(shape)
        checks.check_channels(shape, len(shape) - 1, self.num_features)
        values = math.prod(shape[1:]) // self.num_groups
        checks.check_values(shape, values, "group", "fewer groups")
        return super().__call__(x, mask=mask)
