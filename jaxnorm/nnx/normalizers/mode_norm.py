"""Mode Normalization as a layer of Flax nnx."""

from typing import Any

import jax
from flax import nnx

from jaxnorm.nnx.normalizers.normalizer import OverDevices
from jaxnorm.normalizers.checks import check_count
from jaxnorm.normalizers.mode_norm import (
    Modes,
    check_knobs,
    gate_kernel_init,
    initial_modes,
    mode_norm,
)


class ModeNorm(OverDevices):
    """As `jaxnorm.linen.normalizers.ModeNorm`, as a module of nnx.

    Args:
        num_features: C.
        modes: K.
        gate_kernel_init: of the gate's kernel, [C, K].
        gate_bias_init: of the gate's bias, [K].
        momentum, epsilon: as there.
        rngs: for the initial values.
        **kwargs: as `BatchRenorm`.

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
        gate_bias_init: Any = nnx.initializers.zeros_init(),
        momentum: float = 0.9,
        epsilon: float = 1e-5,
        rngs: nnx.Rngs,
        **kwargs: Any,
    ) -> None:
        check_knobs(momentum, epsilon)
        check_count("modes", modes, 1)
        super().__init__(num_features, momentum=momentum, epsilon=epsilon, rngs=rngs, **kwargs)
        self.make_stats(initial_modes(modes, num_features))
        self.gate_kernel = self.parameter(gate_kernel_init, (num_features, modes), rngs)
        self.gate_bias = self.parameter(gate_bias_init, (modes,), rngs)

    def __call__(self, x: jax.Array, use_running_average: bool | None = None) -> jax.Array:
        """Normalize x."""
        train = self.trains(use_running_average)
        x = self.channels_last(x)
        scale, bias = self.scale_and_bias()
        y, new = mode_norm(
            x,
            self.read(Modes),
            self.gate_kernel[...],
            self.gate_bias[...],
            scale,
            bias,
            train=train,
            momentum=self.momentum,
            epsilon=self.epsilon,
            axis_name=self.axis_name,
            axis_index_groups=self.axis_index_groups,
        )
        if train:
            self.write(new)
        return self.finished(y, x, scale, bias)
