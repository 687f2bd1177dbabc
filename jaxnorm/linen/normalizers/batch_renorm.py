"""`BatchRenorm` of linen."""

import dataclasses
from typing import Any

import jax
from flax import linen as nn

from jaxnorm.linen.normalizers.normalizer import Affine
from jaxnorm.normalizers.batch_renorm import (
    Limits,
    batch_renorm,
    initial_renorm_state,
    published_limits,
)


class BatchRenorm(Affine):
    """Batch Renormalization: BatchNorm for small batches, or such that are not independent.

    ::

        train   y = scale ((x - mean_B) / std_B r + d) + bias      std_B = sqrt(var_B) + epsilon
                r = clip(std_B / std, 1 / r_max, r_max)             without gradient
                d = clip((mean_B - mean) / std, -d_max, d_max)      without gradient
                mean, std <- momentum (mean, std) + (1 - momentum) (mean_B, std_B)
                steps <- steps + 1
        eval    y = scale (x - mean) / std + bias

    with mean_B and var_B (biased) of the batch, mean and std the running ones of before the step.
    Within the limits the training output is that of evaluation; at the limits (1, 0) it is
    BatchNorm's. r and d are constants in the gradient, which is that of BatchNorm times r. The
    standard deviation is averaged, not the variance, and epsilon is a part of it.

    A constant channel has y = scale d + bias, and no gradient goes through its variance. Non-finite
    inputs make their channel of the output and of the running statistics non-finite, as with
    BatchNorm.

    Attributes:
        use_running_average: True: eval. Here or in the call.
        axis: of the channels, default -1.
        momentum: weight of the old statistics in the running ones, in [0, 1]; default 0.99. (In
            PyTorch that of the new, default 0.01: the same.)
        epsilon: added to the standard deviation, in its units; default 1e-3.
        dtype: of the output; default that of x and the parameters. Statistics are computed in
            float32 at least.
        param_dtype: of scale and bias; default float32.
        use_bias, use_scale: whether there is one; default True.
        bias_init, scale_init: of it, as Flax's; default 0 and 1.
        axis_name: mapped axes over which the batch is spread, as of `flax.linen.BatchNorm`. Not
            needed under `jax.jit`.
        axis_index_groups: groups of their indices, as there.
        limits: (keyword) steps -> (r_max >= 1, d_max >= 0). Default the paper's: (1, 0) in the
            first 5000 steps, then linear, to r_max = 3 at 40000 steps and d_max = 5 at 25000.
            Constant ones: ``lambda steps: (3.0, 5.0)``.
        schedule_scale: (keyword, default 1) the limits of step t are those of t / schedule_scale:
            0.1 for a run of a tenth of the length.

    Variables: ``params`` scale [C], bias [C]; ``batch_stats`` mean [C] (initially 0), std [C] (1),
    steps (0, int32), written in training, so ``mutable=["batch_stats"]``. ``init`` computes in
    eval mode.

    Raises:
        TypeError: for an input that is not floating-point.
        ValueError: for an input of less than two axes (the batch is the first), for one value per
            channel in training (the output would not depend on it), for knobs out of range.

    Transformations: all of JAX's and Flax's, as `flax.linen.BatchNorm`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxnorm
        >>> layer = jaxnorm.linen.normalizers.BatchRenorm(schedule_scale=0.1)
        >>> x = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
        >>> variables = layer.init(jax.random.key(1), x, use_running_average=False)
        >>> y, new = layer.apply(
        ...     variables, x, use_running_average=False, mutable=["batch_stats"]
        ... )
        >>> jax.tree.map(jnp.shape, new["batch_stats"])
        {'mean': (3,), 'std': (3,), 'steps': ()}

    References:
        Ioffe, Batch Renormalization, 2017, arXiv:1702.03275: Algorithm 1 has epsilon in the root
        [from memory]; epsilon beside it, its value and the formula of the limits are those of the
        implementation github.com/ludvb/batchrenorm, read there and run beside `torchnorm`'s: equal
        to rounding.
    """

    epsilon: float = 1e-3
    axis_name: Any = None
    axis_index_groups: Any = None
    limits: Limits = dataclasses.field(default=published_limits, kw_only=True)
    schedule_scale: float = dataclasses.field(default=1.0, kw_only=True)

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool | None = None) -> jax.Array:
        """Apply the layer to x [N, *space, C]."""
        train = self.trains(use_running_average)
        x = self.channels_last(x)
        scale, bias = self.scale_and_bias(x.shape[-1])
        state, write = self.stats(initial_renorm_state(x.shape[-1]))
        y, new = batch_renorm(
            x,
            state,
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
            write(new)
        return self.finished(y, x, scale, bias)
