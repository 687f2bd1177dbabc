"""`InstanceEnhancementBatchNorm` of linen."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn
from jax.nn import initializers

from jaxnorm.linen.normalizers.normalizer import Affine
from jaxnorm.normalizers.batch_stats import initial_batch_stats
from jaxnorm.normalizers.iebn import instance_enhancement_batch_norm


class InstanceEnhancementBatchNorm(Affine):
    """Instance Enhancement Batch Normalization (IEBN): each sample weighs its own channels.

    ::

        a = sigmoid(attention_scale * mean_space(x) + attention_bias)     [N, C]
        y = scale a (x - mean) / sqrt(var + epsilon) + bias

        train   mean, var (biased) of the batch; running <- momentum running + (1 - momentum) batch
        eval    the running mean and variance; a as in training

    The mean over space is that of the input, before it is normalized, so that a large mean of a
    channel saturates its weight. Without space, x [N, C], it is x itself.

    Attributes:
        use_running_average, axis, dtype, param_dtype, use_bias, use_scale, bias_init, scale_init,
            axis_name, axis_index_groups: as `BatchRenorm`.
        momentum: weight of the old statistics in the running ones, in [0, 1]; default 0.9. (In
            PyTorch that of the new, default 0.1: the same.)
        epsilon: added to the variance; default 1e-5.
        attention_scale_init: (keyword) default 0, as published: all samples alike at first,
        attention_bias_init: (keyword) default -1, as published: with the weight sigmoid(-1) = 0.27.
        convention: (keyword) which variance runs along: "flax" (default): the biased one;
            "torch": the unbiased one, N / (N - 1) times it, as in the published code.

    Variables: ``params`` scale [C], bias [C], attention_scale [C], attention_bias [C];
    ``batch_stats`` mean [C] (initially 0), var [C] (1), written in training. ``init`` computes in
    eval mode.

    Raises:
        TypeError, ValueError: as `BatchRenorm`; for an unknown convention.

    Transformations: as `BatchRenorm`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxnorm
        >>> layer = jaxnorm.linen.normalizers.InstanceEnhancementBatchNorm()
        >>> x = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
        >>> variables = layer.init(jax.random.key(1), x, use_running_average=False)
        >>> y, new = layer.apply(
        ...     variables, x, use_running_average=False, mutable=["batch_stats"]
        ... )
        >>> print((100 * y.std()).round(), variables["params"]["attention_bias"])
        27.0 [-1. -1. -1.]

    References:
        Liang et al., Instance Enhancement Batch Normalization: an Adaptive Regulator of Batch
        Noise, AAAI 2020, arXiv:1908.04008 [number from memory]; equation and initial values as in
        github.com/gbup-group/IEBN, models/cifar/iebn_resnet.py, read there and run beside
        `torchnorm`'s: with ``convention="torch"`` equal to rounding.
    """

    momentum: float = 0.9
    axis_name: Any = None
    axis_index_groups: Any = None
    attention_scale_init: Callable[..., Any] = dataclasses.field(
        default=initializers.zeros, kw_only=True
    )
    attention_bias_init: Callable[..., Any] = dataclasses.field(
        default=initializers.constant(-1.0), kw_only=True
    )
    convention: str = dataclasses.field(default="flax", kw_only=True)

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool | None = None) -> jax.Array:
        """Apply the layer to x [N, *space, C]."""
        train = self.trains(use_running_average)
        x = self.channels_last(x)
        shape = x.shape[-1:]
        scale, bias = self.scale_and_bias(*shape)
        attention = (
            self.param("attention_scale", self.attention_scale_init, shape, self.param_dtype),
            self.param("attention_bias", self.attention_bias_init, shape, self.param_dtype),
        )
        state, write = self.stats(initial_batch_stats(*shape))
        y, new = instance_enhancement_batch_norm(
            x,
            state,
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
            write(new)
        return self.finished(y, x, *attention)
