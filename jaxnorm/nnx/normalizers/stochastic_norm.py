"""Stochastic normalization as a layer of Flax nnx."""

from typing import Any

import jax
from flax import nnx

from jaxnorm.nnx.normalizers.running import (
    FLOAT32,
    ONES,
    ZEROS,
    RunningStatistics,
    key_of,
    stream,
)
from jaxnorm.normalizers.refusals import check_count
from jaxnorm.normalizers.stochastic_norm import (
    check_knobs,
    draw_batch_noise,
    initial_moments,
    stochastic_norm,
)


class StochasticNorm(RunningStatistics):
    """As `jaxnorm.linen.normalizers.StochasticNorm`, as a module of nnx.

    Args:
        num_features: C.
        samples: M, of which the noise is.
        statistics: "running" or "batch", those that normalize in training.
        use_running_average, axis, momentum, epsilon, dtype, param_dtype, use_bias, use_scale,
            bias_init, scale_init, axis_name, axis_index_groups: as `flax.nnx.BatchNorm`.
        rngs: of the parameters, and with a stream "noise" (or "default") of the noise.

    Raises:
        TypeError: for an x that is not floating, a knob that is no number.
        ValueError: for shapes that do not fit, one value per channel in training, knobs out of
            range.

    Example:
        >>> import jax
        >>> from flax import nnx
        >>> import jaxnorm
        >>> rngs = nnx.Rngs(params=0, noise=1)
        >>> layer = jaxnorm.nnx.normalizers.StochasticNorm(3, samples=32, rngs=rngs)
        >>> x = jax.random.normal(jax.random.key(0), (16, 3))
        >>> bool((layer(x) == layer(x)).all())
        False
        >>> layer.eval()
        >>> bool((layer(x) == layer(x)).all())
        True
    """

    def __init__(
        self,
        num_features: int,
        *,
        samples: int = 64,
        statistics: str = "running",
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
        check_knobs(statistics, momentum, epsilon)
        check_count("samples", samples, 2)
        super().__init__(
            num_features,
            initial_moments(num_features),
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
        self.samples, self.statistics = samples, statistics
        self.rngs = stream(rngs, "noise")

    def __call__(
        self,
        x: jax.Array,
        use_running_average: bool | None = None,
        *,
        noise: jax.Array | None = None,
        rngs: Any = None,
    ) -> jax.Array:
        """Normalize x with the noise [2, C], U and V."""
        evaluates = self.evaluates(use_running_average)
        if noise is None and not evaluates:
            noise = draw_batch_noise(key_of(rngs, self), self.samples, self.num_features)
        y, new = stochastic_norm(
            x,
            self.running(),
            *self.affine(),
            noise=noise,
            use_running_average=evaluates,
            statistics=self.statistics,
            **self.settings(),
        )
        if not evaluates:
            self.store(new)
        return y
