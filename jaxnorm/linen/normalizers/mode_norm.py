"""Mode Normalization as a layer of Flax linen."""

from typing import Any

import jax
from flax import linen as nn

from jaxnorm.linen.normalizers.running import RunningStatistics
from jaxnorm.normalizers.mode_norm import gate_kernel_init, initial_modes, mode_norm
from jaxnorm.normalizers.refusals import check_channels, check_count


class ModeNorm(RunningStatistics):
    """Mode Normalization: a learned gate puts samples into modes, each with statistics of its own.

    With x [N, *space, C], positions p and K modes:

        g_n = softmax(mean_p(x_n) gate_kernel + gate_bias)                     [K]
        N_k = sum_n g_nk
        mean_k = 1/N_k sum_n g_nk mean_p x_np
        var_k = 1/N_k sum_n g_nk mean_p (x_np - mean_k)^2
        y_np = scale sum_k g_nk (x_np - mean_k) / sqrt(var_k + epsilon) + bias

    **Train**: as above; gradients flow through all of it, the gates included. The running averages
    are those of x and of x^2, as published, each with the same momentum, so the running variance

        var <- m var + (1 - m) var_k + m (1 - m) (mean - mean_k)^2

    has the motion of the mean in it (BatchNorm's has not), and begins at 1 (published: 0). Where x
    is far from 0, it is too large until the mean has come there. **Eval**: gates of x, mean and
    variance of the running averages. One mode is BatchNorm but for that term.

    Args:
        modes: K, default 2, as published.
        gate_kernel_init: default 1/K + 0.01 N(0, 1), as published.
        gate_bias_init: default zeros. (Published: PyTorch's for a Linear.)
        use_running_average, axis, momentum, epsilon, dtype, param_dtype, use_bias, use_scale,
            bias_init, scale_init, axis_name, axis_index_groups: as `flax.linen.BatchNorm`, but
            momentum, the weight of the old, is 0.9 as published (the weight of the new, 0.1).

    Collections: params {scale, bias} [C], {gate_kernel} [C, K], {gate_bias} [K]; batch_stats
    {mean, var} [K, C], float32 at first: 0 and 1. Biased variances.

    Returns:
        What a call returns: y in the shape of x.

    Raises:
        TypeError: for an x that is not floating, a knob that is no number.
        ValueError: for an x of less than two axes or of other channels, one value per channel in
            training (without an axis_name), knobs out of range.

    Transformations, dtypes: as `MixtureNorm`. A large mean opens one gate for good, unless the
    columns of gate_kernel sum to nearly 0: the gate reads x as it is.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxnorm
        >>> layer = jaxnorm.linen.normalizers.ModeNorm(modes=2)
        >>> x = jax.random.normal(jax.random.key(0), (8, 5, 5, 3))
        >>> variables = layer.init(jax.random.key(1), x, use_running_average=False)
        >>> y, new = layer.apply(
        ...     variables, x, use_running_average=False, mutable=["batch_stats"])
        >>> y.shape, new["batch_stats"]["mean"].shape
        ((8, 5, 5, 3), (2, 3))

    References:
        Deecke, Murray, Bilen, "Mode Normalization", ICLR 2019, arXiv 1810.05466, and the authors'
        code, https://github.com/ldeecke/mn-torch (nn/ops.py), which was read and is followed except
        where it says so above; a mode that no sample is in has 0 / 0 there, and nothing here.
    """

    momentum: float = 0.9
    modes: int = 2
    gate_kernel_init: Any = gate_kernel_init
    gate_bias_init: Any = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool | None = None) -> jax.Array:
        """Normalize x."""
        evaluates = self.evaluates(use_running_average)
        check_channels(x.shape, self.axis, None)
        check_count("modes", self.modes, 1)
        channels = x.shape[self.axis]
        gate = (
            self.param(
                "gate_kernel", self.gate_kernel_init, (channels, self.modes), self.param_dtype
            ),
            self.param("gate_bias", self.gate_bias_init, (self.modes,), self.param_dtype),
        )
        state, store = self.running(initial_modes(self.modes, channels))
        y, new = mode_norm(
            x,
            state,
            *gate,
            *self.affine(channels),
            use_running_average=evaluates,
            **self.settings(),
        )
        if not evaluates:
            store(new)
        return y
