"""`BatchNorm` of nnx in either framework's convention."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from jaxnorm.normalizers import checks
from jaxnorm.normalizers.batch_norm import (
    averaged,
    channel_axes,
    knobs_of,
    stored_variance,
    values_per_channel,
)
from jaxnorm.normalizers.conventions import DEFAULT, Name


class BatchNorm(nnx.BatchNorm):
    """`flax.nnx.BatchNorm` in Flax's convention or in PyTorch's. As `BatchNorm` of linen.

    What differs from `jaxnorm.linen.normalizers.BatchNorm` is what differs in Flax: the channels
    are counted in the constructor, ``use_running_average`` is False by default, an argument of the
    call goes before that of the constructor, and ``model.train()`` and ``model.eval()`` set it. The
    running statistics are `nnx.BatchStat`.

    Args:
        num_features: the number of channels.
        momentum: as in linen. None: the average over all batches; the attribute is then 0.0, which
            is what Flax's layer is asked for, and ``count`` a `nnx.BatchStat`.
        epsilon: as in linen.
        use_fast_variance: default False, see linen.
        convention: "flax" (default) or "torch".
        **kwargs: the other arguments of `flax.nnx.BatchNorm`, ``rngs`` among them.

    Raises:
        ValueError: as in linen.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> import jaxnorm
        >>> layer = jaxnorm.nnx.normalizers.BatchNorm(2, convention="torch", rngs=nnx.Rngs(0))
        >>> layer(jnp.array([[0.0, 2.0], [2.0, 6.0]])).round(3)
        Array([[-1., -1.],
               [ 1.,  1.]], dtype=float32)
        >>> layer.var[...].round(3)
        Array([1.1, 1.7], dtype=float32)
    """

    def __init__(
        self,
        num_features: int,
        *,
        momentum: Any = DEFAULT,
        epsilon: Any = DEFAULT,
        use_fast_variance: bool = False,
        convention: Name = "flax",
        rngs: nnx.Rngs,
        **kwargs: Any,
    ) -> None:
        knobs = knobs_of(convention, momentum, epsilon)
        super().__init__(
            num_features,
            momentum=0.0 if knobs.momentum is None else knobs.momentum,
            epsilon=knobs.epsilon,
            use_fast_variance=use_fast_variance,
            rngs=rngs,
            **kwargs,
        )
        if self.param_dtype == jnp.float64:  # Flax's are float32 until the first batch
            for statistic in (self.mean, self.var):
                statistic.set_value(statistic[...].astype(jnp.float64))
        self.convention, self.unbiased = convention, knobs.unbiased
        average = knobs.momentum is None
        self.count = nnx.BatchStat(jnp.zeros((), jnp.int32)) if average else nnx.data(None)

    def __call__(
        self, x: Any, use_running_average: bool | None = None, *, mask: jax.Array | None = None
    ) -> Any:
        """Normalize x."""
        evaluate = use_running_average
        if evaluate is None:
            evaluate = self.use_running_average
        shape = jnp.shape(x)
        checks.check_rank(shape)
        axes = channel_axes(len(shape), self.axis)
        checks.check_channels(shape, axes[0], self.num_features)
        if evaluate is None or evaluate:
            return super().__call__(x, evaluate, mask=mask)
        values = values_per_channel(
            shape,
            axes,
            axis_name=self.axis_name,
            axis_index_groups=self.axis_index_groups,
            mask=mask,
        )
        if mask is None:
            checks.check_values(shape, values)
        before = self.mean[...], self.var[...]
        y = super().__call__(x, False, mask=mask)
        if self.unbiased:  # of what Flax has stored, only the batch's share is
            share = self.momentum * before[1]
            batch = stored_variance(self.var[...] - share, values, unbiased=True)
            self.var[...] = lax.stop_gradient(share + batch)
        if self.count is not None:
            batches = self.count[...]
            for statistic, old in zip((self.mean, self.var), before, strict=True):
                new = averaged(old, statistic[...], None, batches)
                statistic[...] = lax.stop_gradient(new)
            self.count[...] = batches + 1
        return y
