"""`SwitchableNorm` of nnx."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax.nn import initializers

from jaxnorm.nnx.normalizers.normalizer import Affine
from jaxnorm.normalizers.batch_stats import BatchStats, initial_batch_stats
from jaxnorm.normalizers.switchable_norm import STATISTICS, check_statistics, switchable_norm


class SwitchableNorm(Affine):
    """As `jaxnorm.linen.normalizers.SwitchableNorm`, which has the text; see `BatchRenorm`.

    Args:
        num_features: C.
        momentum, epsilon, statistics, unbiased, weight_init, axis_name, axis_index_groups: as
            there.
        rngs: for the initial values.
        **kwargs: as `BatchRenorm`.

    Raises:
        TypeError, ValueError: as there; for an input of other than C channels.

    Example:
        >>> import jax
        >>> from flax import nnx
        >>> import jaxnorm
        >>> layer = jaxnorm.nnx.normalizers.SwitchableNorm(3, rngs=nnx.Rngs(0))
        >>> y = layer(jax.random.normal(jax.random.key(0), (4, 8, 8, 3)))
        >>> y.shape, layer.mean_weight.shape
        ((4, 8, 8, 3), (3,))
    """

    def __init__(
        self,
        num_features: int,
        *,
        momentum: float = 0.9,
        epsilon: float = 1e-5,
        statistics: tuple[str, ...] = STATISTICS,
        unbiased: bool = False,
        weight_init: Callable[..., Any] = initializers.ones,
        axis_name: Any = None,
        axis_index_groups: Any = None,
        rngs: nnx.Rngs,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_features, momentum=momentum, epsilon=epsilon, rngs=rngs, **kwargs)
        self.statistics = statistics
        self.unbiased = unbiased
        self.axis_name = axis_name
        self.axis_index_groups = axis_index_groups
        self.mean_weight = self.parameter(weight_init, (len(statistics),), rngs)
        self.var_weight = self.parameter(weight_init, (len(statistics),), rngs)
        if "batch" in statistics:
            self.make_stats(initial_batch_stats(num_features))

    def __call__(self, x: jax.Array, use_running_average: bool | None = None) -> jax.Array:
        """Apply the layer to x [N, *space, C]."""
        running = "batch" in self.statistics
        train = running and self.trains(use_running_average)
        x = self.channels_last(x)
        check_statistics(x, self.statistics)
        scale, bias = self.scale_and_bias()
        y, new = switchable_norm(
            x,
            self.read(BatchStats) if running else initial_batch_stats(self.num_features),
            self.mean_weight[...],
            self.var_weight[...],
            scale,
            bias,
            train=train,
            momentum=self.momentum,
            epsilon=self.epsilon,
            statistics=self.statistics,
            unbiased=self.unbiased,
            axis_name=self.axis_name,
            axis_index_groups=self.axis_index_groups,
        )
        if train:
            self.write(new)
        return self.finished(y, x, scale, bias)
