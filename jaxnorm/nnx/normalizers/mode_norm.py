"""Mode Normalization as a layer of Flax nnx."""

from typing import Any

import jax
from flax import nnx

from jaxnorm.nnx.normalizers.running import FLOAT32, ONES, ZEROS, RunningStatistics
from jaxnorm.normalizers.mode_norm import check_knobs, gate_kernel_init, initial_modes, mode_norm
from jaxnorm.normalizers.refusals import check_count


class ModeNorm(RunningStatistics):
    """As `jaxnorm.linen.normalizers.ModeNorm`, as a module of nnx.

    Args:
        num_features: C.
        modes: K.
        gate_kernel_init: of the gate's kernel, [C, K].
        gate_bias_init: of the gate's bias, [K].
        use_running_average, axis, momentum, epsilon, dtype, param_dtype, use_bias, use_scale,
            bias_init, scale_init, axis_name, axis_index_groups, rngs: as `flax.nnx.BatchNorm`, but
            for the momentum of 0.9.

    Raises:
        TypeError: for an x that is not floating, a knob that is no number.
        ValueError: for shapes that do not fit, one value per channel in training, knobs out of
            range.

    Example:
        >>> import jax
        >>> from flax import nnx
        >>> import jaxnorm
        >>> layer = jaxnorm.nnx.normalizers.ModeNorm(3, modes=2, rngs=nnx.Rngs(0))
        >>> layer(jax.random.normal(jax.random.key(0), (8, 5, 5, 3))).shape
        (8, 5, 5, 3)
    """

    def __init__(
        self,
        num_features: int,
        *,
        modes: int = 2,
        gate_kernel_init: Any = gate_kernel_init,
        gate_bias_init: Any = ZEROS,
        use_running_average: bool | None = False,
        axis: int = -1,
        momentum: float = 0.9,
        epsilon: float = 1e-5,
        dtype: Any = None,
        param_dtype: Any = FLOAT32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: Any = ZEROS,
        scale_init: Any = ONES,
        axis_name: Any = None,
        axis_index_groups: Any = None,
        rngs: nnx.Rngs,
    ) -> None:
        check_knobs(momentum, epsilon)
        check_count("modes", modes, 1)
        super().__init__(
            num_features,
            initial_modes(modes, num_features),
            use_running_average=use_running_average,
            axis=axis,
            momentum=momentum,
            epsilon=epsilon,
            dtype=dtype,
            param_dtype=param_dtype,
            use_bias=use_bias,
            use_scale=use_scale,
            bias_init=bias_init,
            scale_init=scale_init,
            axis_name=axis_name,
            axis_index_groups=axis_index_groups,
            rngs=rngs,
        )
        kernel = gate_kernel_init(rngs.params(), (num_features, modes), param_dtype)
        self.gate_kernel = nnx.Param(kernel)
        self.gate_bias = nnx.Param(gate_bias_init(rngs.params(), (modes,), param_dtype))

    def __call__(self, x: jax.Array, use_running_average: bool | None = None) -> jax.Array:
        """Normalize x."""
        evaluates = self.evaluates(use_running_average)
        y, new = mode_norm(
            x,
            self.running(),
            self.gate_kernel[...],
            self.gate_bias[...],
            *self.affine(),
            use_running_average=evaluates,
            **self.settings(),
        )
        if not evaluates:
            self.store(new)
        return y
