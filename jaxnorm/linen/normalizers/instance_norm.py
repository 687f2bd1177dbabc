"""`InstanceNorm` of linen in either framework's convention, with running statistics as well."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxnorm.linen.normalizers.base import channels_of, flax_layer
from jaxnorm.normalizers import checks
from jaxnorm.normalizers.conventions import DEFAULT, Name
from jaxnorm.normalizers.instance_norm import knobs_of, updated
from jaxnorm.precision import at_least_float32

_STATE = "batch_stats"


class InstanceNorm(nn.InstanceNorm):
    """`flax.linen.InstanceNorm` with the defaults of Flax or of PyTorch.

    ::

        y = scale (x - mean) / sqrt(var + epsilon) + bias

    with mean and var (1 / N in both frameworks) of each sample and channel over its space of N
    positions, in training and evaluation. In float32 at least, the variance about the mean (Flax's
    own default is not, see `BatchNorm`).

    PyTorch can track running statistics, and evaluates with them then; so does this layer if it is
    asked to. They are averages of the mean over samples of mean and var, by the same convention as
    `BatchNorm`: "torch" stores N / (N - 1) var, N the number of positions.

    ==================  ======================  ======================
    default             ``convention="flax"``   ``convention="torch"``
    ==================  ======================  ======================
    scale and bias      yes                     no
    epsilon             1e-6                    1e-5
    running statistics  none in Flax            none unless asked for
    ==================  ======================  ======================

    Args:
        epsilon: what is added to the variance, in the units of x squared. Default: the
            convention's.
        use_scale: default: the convention's.
        use_bias: default: the convention's.
        use_fast_variance: default False.
        convention: (keyword) "flax" (default) or "torch".
        track_running_stats: (keyword) whether to store ``mean`` and ``var`` in ``batch_stats`` and
            to evaluate with them; default False.
        momentum: (keyword) weight of the OLD statistics; default as in `BatchNorm`. (In PyTorch
            None leaves them as they are; here it is refused.)
        use_running_average: (keyword) whether to evaluate, where statistics are tracked; None: to
            be said in the call.
        **kwargs: ``dtype``, ``param_dtype``, ``scale_init``, ``bias_init``, ``feature_axes``,
            ``axis_name``, ``axis_index_groups``, ``force_float32_reductions`` as in Flax.

    Call: x [N, *space, C] with at least one axis of space, ``use_running_average`` unless it was
    given above, and ``mask`` as in Flax (not where statistics are tracked); y in the shape of x.

    Raises:
        ValueError: for an unknown convention, numbers that are none, fewer than three axes,
            another number of channels than the layer has, a single position, and several feature
            axes, a mask or `axis_name` where statistics are tracked.

    Transformations: all of Flax's and JAX's.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxnorm
        >>> layer = jaxnorm.linen.normalizers.InstanceNorm(convention="torch")
        >>> x = jnp.array([[[0.0], [2.0]], [[5.0], [9.0]]])
        >>> layer.init_with_output(jax.random.key(0), x)[0][..., 0].round(3)
        Array([[-1.,  1.],
               [-1.,  1.]], dtype=float32)

    References:
        Ulyanov, Vedaldi and Lempitsky, arXiv 1607.08022, equations 1 to 3 [from memory]; the
        defaults and the running statistics are measured.
    """

    epsilon: Any = DEFAULT
    use_scale: Any = DEFAULT
    use_bias: Any = DEFAULT
    use_fast_variance: bool = False
    convention: Name = dataclasses.field(default="flax", kw_only=True)
    track_running_stats: bool = dataclasses.field(default=False, kw_only=True)
    momentum: Any = dataclasses.field(default=DEFAULT, kw_only=True)
    use_running_average: bool | None = dataclasses.field(default=None, kw_only=True)

    @nn.compact
    def __call__(
        self, x: Any, use_running_average: bool | None = None, *, mask: jax.Array | None = None
    ) -> Any:
        """Normalize x."""
        knobs = knobs_of(
            self.convention, self.momentum, self.epsilon, self.use_scale, self.use_bias
        )
        settings = {
            "epsilon": knobs.epsilon,
            "use_scale": knobs.use_scale,
            "use_bias": knobs.use_bias,
        }
        shape, known = jnp.shape(x), channels_of(self)
        checks.check_rank(shape, 3)
        if known is not None and self.feature_axes == -1:
            checks.check_channels(shape, len(shape) - 1, known)
        positions = math.prod(shape[1:-1])
        if not self.track_running_stats:
            checks.check_values(shape, positions, "channel of a sample", "a larger image")
            return flax_layer(self, nn.InstanceNorm, **settings)(x, mask=mask)
        evaluate = nn.merge_param(
            "use_running_average", self.use_running_average, use_running_average
        )
        checks.check_tracked(self.feature_axes == -1, mask is None, self.axis_name is None)
        if evaluate:
            return flax_layer(self, nn.BatchNorm, use_running_average=True, **settings)(x)
        checks.check_values(shape, positions, "channel of a sample", "a larger image")
        dtype = at_least_float32(self.param_dtype)
        mean = self.variable(_STATE, "mean", jnp.zeros, shape[-1:], dtype)
        var = self.variable(_STATE, "var", jnp.ones, shape[-1:], dtype)
        if not self.is_initializing():
            mean.value, var.value = updated(mean.value, var.value, x, knobs)
        return flax_layer(self, nn.InstanceNorm, **settings)(x)
