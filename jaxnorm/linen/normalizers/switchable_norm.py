"""`SwitchableNorm` of linen."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn
from jax.nn import initializers

from jaxnorm.linen.normalizers.normalizer import Affine
from jaxnorm.normalizers.batch_stats import initial_batch_stats
from jaxnorm.normalizers.switchable_norm import STATISTICS, check_statistics, switchable_norm


class SwitchableNorm(Affine):
    """Switchable Normalization: learns how much of Instance-, Layer- and BatchNorm it is.

    ::

        y = scale (x - sum_k p_k mean_k) / sqrt(sum_k q_k var_k + epsilon) + bias
        p = softmax(mean_weight),  q = softmax(var_weight),  k in statistics

        instance   over the space of each sample and channel
        layer      over space and channels of each sample
        batch      over space and batch of each channel; in eval its running mean and variance

        train      running <- momentum running + (1 - momentum) batch

    **The trap**: which variance. The paper's are biased: 1/n. The published code takes PyTorch's
    default for the instances', which is unbiased, 1/(n - 1), for n positions, and makes the others
    of it: var_layer = mean over channels of (var_instance + mean_instance^2) - mean_layer^2, and
    var_batch likewise. So its layer and batch variances are neither the biased nor the unbiased
    ones, and a single position is 0 / 0. ``unbiased=False`` (default) are the paper's,
    ``unbiased=True`` the published code's numbers.

    Attributes:
        use_running_average, axis, dtype, param_dtype, use_bias, use_scale, bias_init, scale_init,
            axis_name, axis_index_groups: as `BatchRenorm`.
        momentum: weight of the old statistics in the running ones, in [0, 1]; default 0.9. (In
            PyTorch here that of the new, default 0.1: the same; the published code, although in
            PyTorch, names that of the old, with 0.997 for inputs of rank 2 and 5.)
        epsilon: added to the mixed variance; default 1e-5.
        statistics: (keyword) which norms, in the order of their weights; default all three. Without
            space, x [N, C], ``("layer", "batch")`` (each value is the mean of its instance);
            ``("instance", "layer")`` needs no batch and has no state.
        unbiased: (keyword, default False) see above. Needs two positions, or, for x [N, C], takes
            the unbiased variances over channels and batch, as the published code does.
        weight_init: (keyword) of both weights, default 1: all norms alike.

    Variables: ``params`` scale [C], bias [C], mean_weight [K], var_weight [K];
    ``batch_stats`` mean [C] (initially 0), var [C] (1; the published code has 0), written in
    training, if "batch" is among the statistics. ``init`` computes in eval mode.

    Raises:
        TypeError, ValueError: as `BatchRenorm`, the batch being too small only for "batch"; for
            statistics that are unknown, twice there, or that x does not have.

    Transformations: as `BatchRenorm`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxnorm
        >>> layer = jaxnorm.linen.normalizers.SwitchableNorm(use_running_average=False)
        >>> x = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
        >>> variables = layer.init(jax.random.key(1), x)
        >>> y, new = layer.apply(variables, x, mutable=["batch_stats"])
        >>> jax.tree.map(jnp.shape, variables["params"])
        {'bias': (3,), 'mean_weight': (3,), 'scale': (3,), 'var_weight': (3,)}

    References:
        Luo et al., Differentiable Learning-to-Normalize via Switchable Normalization, 2018,
        arXiv:1806.10779, equations 2 to 5 [numbers from memory]; the code read is
        github.com/switchablenorms/Switchable-Normalization, devkit/ops/switchable_norm.py, run
        beside `torchnorm`'s: with ``unbiased=True`` equal to rounding.
    """

    momentum: float = 0.9
    axis_name: Any = None
    axis_index_groups: Any = None
    statistics: tuple[str, ...] = dataclasses.field(default=STATISTICS, kw_only=True)
    unbiased: bool = dataclasses.field(default=False, kw_only=True)
    weight_init: Callable[..., Any] = dataclasses.field(default=initializers.ones, kw_only=True)

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool | None = None) -> jax.Array:
        """Apply the layer to x [N, *space, C]."""
        running = "batch" in self.statistics
        train = running and self.trains(use_running_average)
        x = self.channels_last(x)
        check_statistics(x, self.statistics)
        scale, bias = self.scale_and_bias(x.shape[-1])
        mean_weight, var_weight = (
            self.param(name, self.weight_init, (len(self.statistics),), self.param_dtype)
            for name in ("mean_weight", "var_weight")
        )
        initial = initial_batch_stats(x.shape[-1])
        state, write = self.stats(initial) if running else (initial, None)
        y, new = switchable_norm(
            x,
            state,
            mean_weight,
            var_weight,
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
        if train and write is not None:
            write(new)
        return self.finished(y, x, scale, bias)
