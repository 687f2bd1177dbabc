"""`BatchRenorm` of nnx."""

from typing import Any

import jax
from flax import nnx

from jaxnorm.nnx.normalizers.normalizer import Affine
from jaxnorm.normalizers.batch_renorm import (
    Limits,
    RenormState,
    batch_renorm,
    initial_renorm_state,
    published_limits,
)


class BatchRenorm(Affine):
    """As `jaxnorm.linen.normalizers.BatchRenorm`, which has the text.

    What differs is what differs between Flax's `BatchNorm` of both: ``num_features`` and ``rngs``
    are given, ``use_running_average`` is False by default, and set by ``model.train()``,
    ``model.eval()`` and `flax.nnx.view`; that of the call goes first. The state is in
    `nnx.BatchStat` variables of the layer: mean, std and steps.

    Args:
        num_features: C.
        momentum, epsilon, limits, schedule_scale, axis_name, axis_index_groups: as there.
        rngs: for the initial values.
        **kwargs: use_running_average, axis, dtype, param_dtype, use_bias, use_scale, bias_init,
            scale_init: as there.

    Raises:
        TypeError, ValueError: as there; for an input of other than C channels.

    Example:
        >>> import jax
        >>> from flax import nnx
        >>> import jaxnorm
        >>> layer = jaxnorm.nnx.normalizers.BatchRenorm(3, schedule_scale=0.1, rngs=nnx.Rngs(0))
        >>> y = layer(jax.random.normal(jax.random.key(0), (4, 8, 8, 3)))
        >>> int(layer.steps[...])
        1
    """

    def __init__(
        self,
        num_features: int,
        *,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        limits: Limits = published_limits,
        schedule_scale: float = 1.0,
        axis_name: Any = None,
        axis_index_groups: Any = None,
        rngs: nnx.Rngs,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_features, momentum=momentum, epsilon=epsilon, rngs=rngs, **kwargs)
        self.limits = limits
        self.schedule_scale = schedule_scale
        self.axis_name = axis_name
        self.axis_index_groups = axis_index_groups
        self.make_stats(initial_renorm_state(num_features))

    def __call__(self, x: jax.Array, use_running_average: bool | None = None) -> jax.Array:
        """Apply the layer to x [N, *space, C]."""
        train = self.trains(use_running_average)
        x = self.channels_last(x)
        scale, bias = self.scale_and_bias()
        y, new = batch_renorm(
            x,
            self.read(RenormState),
            scale,
            bias,
            train=train,
            momentum=self.momentum,
            epsilon=self.epsilon,
            limits=self.limits,
            schedule_scale=self.schedule_scale,
            axis_name=self.axis_name,
            axis_index_groups=self.axis_index_groups,
        )
        if train:
            self.write(new)
        return self.finished(y, x, scale, bias)
