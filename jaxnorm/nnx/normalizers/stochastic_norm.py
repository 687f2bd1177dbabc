"""Stochastic normalization as a layer of Flax nnx."""

from typing import Any

import jax
from flax import nnx

from jaxnorm.nnx.normalizers.noise import key_of, stream
from jaxnorm.nnx.normalizers.normalizer import OverDevices
from jaxnorm.normalizers.batch_stats import BatchStats, initial_batch_stats
from jaxnorm.normalizers.checks import check_count
from jaxnorm.normalizers.stochastic_norm import (
    check_knobs,
    draw_batch_noise,
    stochastic_norm,
)


class StochasticNorm(OverDevices):
    """As `jaxnorm.linen.normalizers.StochasticNorm`, as a module of nnx.

    Args:
        num_features: C.
        samples: M, of which the noise is.
        statistics: "running" or "batch", those that normalize in training.
        momentum, epsilon: as there.
        **kwargs: as `BatchRenorm`.
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
        momentum: float = 0.99,
        epsilon: float = 1e-5,
        rngs: nnx.Rngs,
        **kwargs: Any,
    ) -> None:
        check_knobs(statistics, momentum, epsilon)
        check_count("samples", samples, 2)
        super().__init__(num_features, momentum=momentum, epsilon=epsilon, rngs=rngs, **kwargs)
        self.make_stats(initial_batch_stats(num_features))
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
        train = self.trains(use_running_average)
        if noise is None and train:
            noise = draw_batch_noise(key_of(rngs, self), self.samples, self.num_features)
        x = self.channels_last(x)
        scale, bias = self.scale_and_bias()
        y, new = stochastic_norm(
            x,
            self.read(BatchStats),
            scale,
            bias,
            train=train,
            noise=noise,
            statistics=self.statistics,
            momentum=self.momentum,
            epsilon=self.epsilon,
            axis_name=self.axis_name,
            axis_index_groups=self.axis_index_groups,
        )
        if train:
            self.write(new)
        return self.finished(y, x, scale, bias)
