"""`AttentiveNorm` of linen."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn
from jax.nn import initializers

from jaxnorm.linen.normalizers.normalizer import Normalizer
from jaxnorm.normalizers.attentive_norm import (
    AttentiveParams,
    around_one,
    attentive_norm,
    initial_attentive_state,
)
from jaxnorm.normalizers.channels import check_knob


class AttentiveNorm(Normalizer):
    """Attentive Normalization: BatchNorm whose scale and bias each sample mixes out of K.

    ::

        y      = (lambda @ scale) (x - mean) / sqrt(var + epsilon) + lambda @ bias
        lambda = hard_sigmoid(attention_scale z + attention_bias)     [N, K]
        z      = (pooled @ projection - m) / sqrt(v + epsilon)        the 1x1 convolution, BatchNorm
        pooled = mean_space(x) / sqrt(var_space(x) + 1e-3)            [N, C]

        train   mean, var (biased) [C] of the batch and m, v [K] of the batch's pooled samples;
                running <- momentum running + (1 - momentum) batch, of all four
        eval    the running statistics; the attention as in training

    Because of the BatchNorm in the attention training needs two samples, whatever the space.

    Attributes:
        use_running_average, axis, dtype, param_dtype, axis_name, axis_index_groups: as
            `BatchRenorm`.
        momentum: weight of the old statistics in the running ones, in [0, 1]; default 0.9. (In
            PyTorch that of the new, default 0.1: the same.)
        epsilon: added to the variances of both BatchNorms; default 1e-5.
        bias_init, scale_init: of the mixtures; default normal with standard deviation 0.1 around 0
            and around 1.
        mixtures: (keyword, default 10) K, how many.
        projection_init: (keyword) default normal with variance 1 / C.
        attention: (keyword) "hard_sigmoid" (default), relu6(x + 3) / 6; "sigmoid"; "softmax" over
            the mixtures. (In the published code the attention modes 2, 5 and 6.)
        unbiased: (keyword, default False) whether var_space is the unbiased variance, as in the
            published code, which takes PyTorch's default. A single position has none.
        convention: (keyword) as `InstanceEnhancementBatchNorm`, of both running variances.

    Variables: ``params`` scale [K, C], bias [K, C], projection [C, K], attention_scale [K],
    attention_bias [K]; ``batch_stats`` mean [C], var [C], attention_mean [K], attention_var [K],
    initially 0 and 1, written in training. ``init`` computes in eval mode.

    Raises:
        TypeError, ValueError: as `BatchRenorm`; for a single sample in training, ``unbiased`` with
            a single position, unknown names, and less than one mixture.

    Transformations: as `BatchRenorm`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxnorm
        >>> layer = jaxnorm.linen.normalizers.AttentiveNorm(mixtures=5)
        >>> x = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
        >>> variables = layer.init(jax.random.key(1), x, use_running_average=False)
        >>> y, new = layer.apply(
        ...     variables, x, use_running_average=False, mutable=["batch_stats"]
        ... )
        >>> print(variables["params"]["scale"].shape, new["batch_stats"]["attention_mean"].shape)
        (5, 3) (5,)

    References:
        Li, Sun and Wu, Attentive Normalization, ECCV 2020, arXiv:1908.01259 [number from memory];
        equations, constants and initial values as in github.com/iVMCL/AOGNet-v2,
        models/aognet/operator_basic.py, read there; the default of `mixtures` [from memory].
    """

    momentum: float = 0.9
    bias_init: Callable[..., Any] = initializers.normal(0.1)
    scale_init: Callable[..., Any] = around_one
    axis_name: Any = None
    axis_index_groups: Any = None
    mixtures: int = dataclasses.field(default=10, kw_only=True)
    projection_init: Callable[..., Any] = dataclasses.field(
        default=initializers.variance_scaling(1.0, "fan_in", "normal"), kw_only=True
    )
    attention: str = dataclasses.field(default="hard_sigmoid", kw_only=True)
    unbiased: bool = dataclasses.field(default=False, kw_only=True)
    convention: str = dataclasses.field(default="flax", kw_only=True)

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool | None = None) -> jax.Array:
        """Apply the layer to x [N, *space, C]."""
        train = self.trains(use_running_average)
        check_knob("mixtures", self.mixtures, 1)
        x = self.channels_last(x)
        channels = x.shape[-1]

        def parameter(name, init, *shape):
            return self.param(name, init, shape, self.param_dtype)

        params = AttentiveParams(
            parameter("scale", self.scale_init, self.mixtures, channels),
            parameter("bias", self.bias_init, self.mixtures, channels),
            parameter("projection", self.projection_init, channels, self.mixtures),
            parameter("attention_scale", initializers.ones, self.mixtures),
            parameter("attention_bias", initializers.zeros, self.mixtures),
        )
        state, write = self.stats(initial_attentive_state(channels, self.mixtures))
        y, new = attentive_norm(
            x,
            state,
            params,
            train=train,
            momentum=self.momentum,
            epsilon=self.epsilon,
            attention=self.attention,
            unbiased=self.unbiased,
            convention=self.convention,
            axis_name=self.axis_name,
            axis_index_groups=self.axis_index_groups,
        )
        if train:
            write(new)
        return self.finished(y, x, *params)
