"""`BatchNorm` of linen in either framework's convention."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxnorm.linen.normalizers.base import channels_of, flax_layer
from jaxnorm.normalizers import checks
from jaxnorm.normalizers.batch_norm import (
    averaged,
    channel_axes,
    knobs_of,
    stored_variance,
    values_per_channel,
)
from jaxnorm.normalizers.conventions import DEFAULT, Name

_STATE = "batch_stats"


class BatchNorm(nn.BatchNorm):
    """`flax.linen.BatchNorm` in Flax's convention or in PyTorch's, to the last digit.

    ::

        train   y = scale (x - mean) / sqrt(var + epsilon) + bias     mean, var: of the batch, var
                                                                      with 1 / N in both frameworks
                running = momentum running + (1 - momentum) batch     of mean and var; of var times
                                                                      N / (N - 1) for "torch"
        eval    y = scale (x - running mean) / sqrt(running var + epsilon) + bias

    with N values per channel: the batch times its space, over all devices. What the two take for
    granted:

    ==============================  ==========================  ===========================
    default                         ``convention="flax"``       ``convention="torch"``
    ==============================  ==========================  ===========================
    weight of the old statistics    0.99                        0.9 (``momentum=0.1`` there)
    what is stored of the variance  as it is                    times N / (N - 1)
    epsilon                         1e-5                        1e-5
    ==============================  ==========================  ===========================

    The statistics are computed in float32 at least, the variance about the mean. Flax's own default
    is ``use_fast_variance=True``, E[x^2] - E[x]^2, which has lost every digit in float32 at a mean
    of 1e4 and a spread of 1 (`parity_tests/DIFFERENCES.md` measures it). Non-finite inputs make
    their channel of the output, and the running statistics, non-finite, as in both frameworks.
    Before any training the running mean is 0 and the running variance 1, so that evaluation applies
    scale and bias only.

    Before or after the activation: ``nn.relu(BatchNorm()(Dense(...)(x)))`` is Ioffe and Szegedy's;
    ``BatchNorm()(nn.relu(Dense(...)(x)))`` standardizes what the next layer reads. `find_gates` and
    `neuronwise` find the activation in both: in the first the layer's gate is the ReLU behind the
    BatchNorm, with the slope at what the ReLU finally sees.

    Args:
        use_running_average: whether to evaluate. None: to be said in the call.
        axis: of the channels, default -1; several are possible.
        momentum: weight of the OLD statistics, from 0 to 1. None: the average over all batches
            (PyTorch's; Flax has none), counted in ``count`` of ``batch_stats``. Default: the
            convention's.
        epsilon: what is added to the variance, in the units of x squared. Default: the
            convention's.
        use_scale: default True. PyTorch has one argument for both, ``affine``.
        use_bias: default True.
        axis_name: mapped axes (one or a tuple) over which the batch is spread, inside `jax.vmap`,
            `jax.pmap` and `jax.shard_map`: the statistics are then those of the whole batch. Not
            needed under `jax.jit`. Each device counts the same; with a mask, so does each device's
            mean, as in Flax.
        axis_index_groups: of `axis_name`, as in `jax.lax.psum`; inside pmap and vmap.
        use_fast_variance: default False, see above.
        convention: (keyword) "flax" (default) or "torch".
        **kwargs: ``dtype``, ``param_dtype``, ``scale_init``, ``bias_init``,
            ``force_float32_reductions`` as in Flax. Running statistics are float32, and float64
            where parameters and inputs are. (``capture_intermediates`` of Flax records the output
            twice: of this module and of Flax's in its place.)

    Call:
        x [N, *space, C], one axis of space or more or none; ``use_running_average``, unless it was
        given above; ``mask``, where x counts, of a shape that broadcasts to that of x. Returns y in
        the shape of x and the wider dtype of x and the parameters. Training needs
        ``mutable=["batch_stats"]``.

    Raises:
        ValueError: for an unknown convention, a momentum or epsilon that is no such number, fewer
            than two axes, another number of channels than the state has, and, in training, one
            value per channel. (Flax returns the bias for that.)

    Transformations: all of Flax's and JAX's, as `flax.linen.BatchNorm`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxnorm
        >>> layer = jaxnorm.linen.normalizers.BatchNorm(convention="torch")
        >>> x = jnp.array([[0.0, 2.0], [2.0, 6.0]])
        >>> variables = layer.init(jax.random.key(0), x, use_running_average=False)
        >>> y, new = layer.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
        >>> print(y.round(3), new["batch_stats"]["var"])
        [[-1. -1.]
         [ 1.  1.]] [1.1 1.7]

        Before the activation, and behind it:

        >>> import flax.linen as nn
        >>> first, second = (jaxnorm.linen.normalizers.BatchNorm(True) for _ in range(2))
        >>> model = nn.Sequential(
        ...     [nn.Dense(4), first, nn.relu, nn.Dense(4), nn.gelu, second, nn.Dense(1)]
        ... )
        >>> variables = model.init(jax.random.key(0), x)
        >>> print(jaxnorm.linen.find_gates(model, variables, x))
        layer     kind   gate  reason
        layers_0  Dense  relu  deferred to layers_1
        layers_3  Dense  gelu  direct
        layers_6  Dense  None  no activation follows: the output
        3 of 3 layers with a matrix are converted

    References:
        Ioffe and Szegedy, arXiv 1502.03167, algorithms 1 and 2; the conventions are measured.
    """

    momentum: Any = DEFAULT
    epsilon: Any = DEFAULT
    use_fast_variance: bool = False
    convention: Name = dataclasses.field(default="flax", kw_only=True)

    @nn.compact
    def __call__(
        self, x: Any, use_running_average: bool | None = None, *, mask: jax.Array | None = None
    ) -> Any:
        """Normalize x."""
        evaluate = nn.merge_param(
            "use_running_average", self.use_running_average, use_running_average
        )
        knobs = knobs_of(self.convention, self.momentum, self.epsilon)
        shape, axes = jnp.shape(x), channel_axes(jnp.ndim(x), self.axis)
        checks.check_rank(shape)
        old = {name: self.get_variable(_STATE, name) for name in ("mean", "var")}
        known = channels_of(self)
        if known is not None and len(axes) == 1:
            checks.check_channels(shape, axes[0], known)
        count: Any = None
        if knobs.momentum is None:
            count = self.variable(_STATE, "count", lambda: jnp.zeros((), jnp.int32))
        flax_alone = knobs.momentum is not None and not knobs.unbiased
        wide = jnp.result_type(x) == self.param_dtype == jnp.float64
        # With momentum 0 Flax stores the batch's own statistics.
        theirs = flax_layer(
            self,
            nn.BatchNorm,
            use_running_average=evaluate,
            momentum=knobs.momentum if flax_alone else 0.0,
            epsilon=knobs.epsilon,
            force_float32_reductions=self.force_float32_reductions and not wide,
        )
        if evaluate or self.is_initializing():
            return theirs(x, mask=mask)
        values = values_per_channel(
            shape,
            axes,
            axis_name=self.axis_name,
            axis_index_groups=self.axis_index_groups,
            mask=mask,
        )
        if mask is None:
            checks.check_values(shape, values)
        y = theirs(x, mask=mask)
        if not flax_alone:
            self._store(old, knobs, count, values)
        return y

    def _store(self, old: Any, knobs: Any, count: Any, values: Any) -> None:
        """Average what Flax has stored with what was there before."""
        batch = {name: self.get_variable(_STATE, name) for name in old}
        batch["var"] = stored_variance(batch["var"], values, unbiased=knobs.unbiased)
        before: Any = None if count is None else count.value
        for name, value in old.items():
            value = value if value is not None else jnp.full_like(batch[name], name == "var")
            self.put_variable(_STATE, name, averaged(value, batch[name], knobs.momentum, before))
        if count is not None:
            count.value = before + 1
