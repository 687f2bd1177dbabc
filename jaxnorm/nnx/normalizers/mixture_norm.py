"""Mixture Normalization as a layer of Flax nnx."""

from typing import Any

import jax
from flax import nnx

from jaxnorm.nnx.normalizers.running import FLOAT32, ONES, ZEROS, RunningStatistics
from jaxnorm.normalizers.mixture_norm import check_knobs, initial_mixture, mixture_norm


class MixtureNorm(RunningStatistics):
    """As `jaxnorm.linen.normalizers.MixtureNorm`, as a module of nnx.

    Args:
        num_features: C.
        components: K.
        steps: of EM.
        floor: of a component's variance within EM.
        responsibility_gradient: whether gradients flow through the responsibilities.
        use_running_average, axis, momentum, epsilon, dtype, param_dtype, use_bias, use_scale,
            bias_init, scale_init, axis_name, axis_index_groups, rngs: as `flax.nnx.BatchNorm`.

    Raises:
        TypeError: for an x that is not floating, a knob that is no number.
        ValueError: for shapes that do not fit, one value per channel in training, knobs out of
            range.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> import jaxnorm
        >>> layer = jaxnorm.nnx.normalizers.MixtureNorm(1, components=2, rngs=nnx.Rngs(0))
        >>> x = jnp.concatenate([jnp.linspace(-6, -4, 9), jnp.linspace(4, 6, 9)])[:, None]
        >>> y = layer(x)
        >>> round(float(y[:9].mean()), 4), round(float(y[:9].var()), 3)
        (0.0, 2.0)
    """

    def __init__(
        self,
        num_features: int,
        *,
        components: int = 2,
        steps: int = 5,
        floor: float = 1e-3,
        responsibility_gradient: bool = False,
        use_running_average: bool | None = False,
        axis: int = -1,
        momentum: float = 0.99,
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
        check_knobs(components, steps, floor, momentum, epsilon)
        super().__init__(
            num_features,
            initial_mixture(components, num_features),
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
        self.steps, self.floor = steps, floor
        self.responsibility_gradient = responsibility_gradient

    def __call__(
        self,
        x: jax.Array,
        use_running_average: bool | None = None,
        *,
        seeds: jax.Array | None = None,
    ) -> jax.Array:
        """Normalize x; `seeds` [K, C] are the means where EM begins, in units of x."""
        evaluates = self.evaluates(use_running_average)
        y, new = mixture_norm(
            x,
            self.running(),
            *self.affine(),
            use_running_average=evaluates,
            steps=self.steps,
            floor=self.floor,
            responsibility_gradient=self.responsibility_gradient,
            seeds=seeds,
            **self.settings(),
        )
        if not evaluates:
            self.store(new)
        return y
