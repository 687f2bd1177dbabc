"""`InstanceEnhancementBatchNorm` of nnx."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax.nn import initializers

from jaxnorm.nnx.normalizers.normalizer import Affine
from jaxnorm.normalizers.batch_stats import BatchStats, initial_batch_stats
from jaxnorm.normalizers.iebn import instance_enhancement_batch_norm


class InstanceEnhancementBatchNorm(Affine):
    """As `jaxnorm.linen.normalizers.InstanceEnhancementBatchNorm`; see `BatchRenorm`.

    Args:
        num_features: C.
        momentum, epsilon, attention_scale_init, attention_bias_init, convention, axis_name,
            axis_index_groups: as there.
        rngs: for the initial values.
        **kwargs: as `BatchRenorm`.

    Raises:
        TypeError, ValueError: as there; for an input of other than C channels.

    Example:
        >>> import jax
        >>> from flax import nnx
        >>> import jaxnorm
        >>> layer = jaxnorm.nnx.normalizers.InstanceEnhancementBatchNorm(3, rngs=nnx.Rngs(0))
        >>> layer(jax.random.normal(jax.random.key(0), (4, 8, 8, 3))).shape
        (4, 8, 8, 3)
    """

    def __init__(
        self,
        num_features: int,
        *,
        momentum: float = 0.9,
        epsilon: float = 1e-5,
        attention_scale_init: Callable[..., Any] = initializers.zeros,
        attention_bias_init: Callable[..., Any] = initializers.constant(-1.0),
        convention: str = "flax",
        axis_name: Any = None,
        axis_index_groups: Any = None,
        rngs: nnx.Rngs,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_features, momentum=momentum, epsilon=epsilon, rngs=rngs, **kwargs)
        self.convention = convention
        self.axis_name = axis_name
        self.axis_index_groups = axis_index_groups
        self.attention_scale = self.parameter(attention_scale_init, (num_features,), rngs)
        self.attention_bias = self.parameter(attention_bias_init, (num_features,), rngs)
        self.make_stats(initial_batch_stats(num_features))

    def __call__(self, x: jax.Array, use_running_average: bool | None = None) -> jax.Array:
        """Apply the layer to x [N, *space, C]."""
        train = self.trains(use_running_average)
        x = self.channels_last(x)
        scale, bias = self.scale_and_bias()
        attention = self.attention_scale[...], self.attention_bias[...]
        y, new = instance_enhancement_batch_norm(
            x,
            self.read(BatchStats),
            scale,
            bias,
            *attention,
            train=train,
            momentum=self.momentum,
            epsilon=self.epsilon,
            convention=self.convention,
            axis_name=self.axis_name,
            axis_index_groups=self.axis_index_groups,
        )
        if train:
            self.write(new)
        return self.finished(y, x, *attention)
