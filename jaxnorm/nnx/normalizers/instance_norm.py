"""`InstanceNorm` of nnx in either framework's convention, with running statistics as well."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from jaxnorm.normalizers import checks
from jaxnorm.normalizers.conventions import DEFAULT, Name
from jaxnorm.normalizers.instance_norm import knobs_of, updated
from jaxnorm.precision import at_least_float32


class InstanceNorm(nnx.InstanceNorm):
    """`flax.nnx.InstanceNorm` with the defaults of Flax or of PyTorch. As `InstanceNorm` of linen.

    Args:
        num_features: the number of channels.
        epsilon: as in linen.
        use_scale: as in linen.
        use_bias: as in linen.
        use_fast_variance: default False.
        convention: "flax" (default) or "torch".
        track_running_stats: as in linen; ``mean`` and ``var`` are `nnx.BatchStat`.
        momentum: as in linen.
        use_running_average: default False; ``model.eval()`` sets it.
        **kwargs: the other arguments of `flax.nnx.InstanceNorm`, ``rngs`` among them.

    Raises:
        ValueError: as in linen.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> import jaxnorm
        >>> layer = jaxnorm.nnx.normalizers.InstanceNorm(1, rngs=nnx.Rngs(0))
        >>> layer(jnp.array([[[0.0], [2.0]], [[5.0], [9.0]]]))[..., 0].round(3)
        Array([[-1.,  1.],
               [-1.,  1.]], dtype=float32)
    """

    def __init__(
        self,
        num_features: int,
        *,
        epsilon: Any = DEFAULT,
        use_scale: Any = DEFAULT,
        use_bias: Any = DEFAULT,
        use_fast_variance: bool = False,
        convention: Name = "flax",
        track_running_stats: bool = False,
        momentum: Any = DEFAULT,
        use_running_average: bool = False,
        rngs: nnx.Rngs,
        **kwargs: Any,
    ) -> None:
        knobs = knobs_of(convention, momentum, epsilon, use_scale, use_bias)
        super().__init__(
            num_features,
            epsilon=knobs.epsilon,
            use_scale=knobs.use_scale,
            use_bias=knobs.use_bias,
            use_fast_variance=use_fast_variance,
            rngs=rngs,
            **kwargs,
        )
        self.convention, self.track_running_stats = convention, track_running_stats
        self.momentum, self.unbiased = knobs.momentum, knobs.unbiased
        self.use_running_average = use_running_average
        self.mean: Any = nnx.data(None)
        self.var: Any = nnx.data(None)
        if track_running_stats:
            dtype = at_least_float32(self.param_dtype)
            self.mean = nnx.BatchStat(jnp.zeros(num_features, dtype))
            self.var = nnx.BatchStat(jnp.ones(num_features, dtype))

    def __call__(
        self, x: Any, use_running_average: bool | None = None, *, mask: jax.Array | None = None
    ) -> Any:
        """Normalize x."""
        shape, positions = jnp.shape(x), math.prod(jnp.shape(x)[1:-1])
        checks.check_rank(shape, 3)
        checks.check_channels(shape, len(shape) - 1, self.num_features)
        if not self.track_running_stats:
            checks.check_values(shape, positions, "channel of a sample", "a larger image")
            return super().__call__(x, mask=mask)
        checks.check_tracked(self.feature_axes == -1, mask is None, self.axis_name is None)
        if self.use_running_average if use_running_average is None else use_running_average:
            return self._evaluated(x)
        checks.check_values(shape, positions, "channel of a sample", "a larger image")
        knobs = knobs_of(
            self.convention, self.momentum, self.epsilon, self.use_scale, self.use_bias
        )
        mean, var = updated(self.mean[...], self.var[...], x, knobs)
        self.mean[...], self.var[...] = lax.stop_gradient(mean), lax.stop_gradient(var)
        return super().__call__(x)

    def _evaluated(self, x: Any) -> Any:
        """Flax's BatchNorm on our parameters and statistics."""
        layer = nnx.BatchNorm(
            self.num_features,
            use_running_average=True,
            epsilon=self.epsilon,
            dtype=self.dtype,
            use_scale=False,
            use_bias=False,
            promote_dtype=self.promote_dtype,
            rngs=nnx.Rngs(0),
        )
        layer.mean, layer.var = self.mean, self.var
        layer.scale, layer.bias = self.scale, self.bias
        return layer(x)
