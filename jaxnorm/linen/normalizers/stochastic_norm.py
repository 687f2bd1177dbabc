"""Stochastic normalization as a layer of Flax linen."""

import jax
from flax import linen as nn

from jaxnorm.linen.normalizers.running import RunningStatistics
from jaxnorm.normalizers.refusals import check_channels, check_count
from jaxnorm.normalizers.stochastic_norm import draw_batch_noise, initial_moments, stochastic_norm


class StochasticNorm(RunningStatistics):
    """Stochastic (Bayesian) normalization: a deterministic one, and the noise of BatchNorm.

        y = scale U ((x - mean) / sqrt(var + epsilon) + V) + bias

    BatchNorm standardizes with the mean m_B and the deviation s_B of its batch. Seen from the true
    mean and sigma that is

        (x - m_B) / s_B = sigma / s_B ((x - mean) / sigma + (mean - m_B) / sigma) = U (xhat + V),

    noise in the parameters, the same for all samples of a call, and for M normal samples that are
    not x itself ``V ~ N(0, 1/M)`` and, independent of it, ``M / U^2 ~ chi^2`` of M - 1 degrees.
    Here it is put onto a normalization that needs no batch, so it can be that of any batch size.

    **Train**: mean and var are the running ones, which gradients do not flow through
    (``statistics="running"``), and which are then updated; or those of the batch, through which
    they flow ("batch": a large batch with the noise of a small one). The noise is drawn at every
    call unless it is given. **Eval**: the running statistics and no noise, unless noise is given:
    an average over calls with `draw_batch_noise` is the Bayesian prediction.

    Args:
        samples: M, how many values per channel the noise is that of, default 64; for images count
            the positions too.
        statistics: "running" (default) or "batch".
        use_running_average, axis, momentum, epsilon, dtype, param_dtype, use_bias, use_scale,
            bias_init, scale_init, axis_name, axis_index_groups: as `flax.linen.BatchNorm`.

    Collections: params {scale, bias}, batch_stats {mean, var}, all [C]; biased variances.
    Random numbers: of ``rngs={"noise": key}``.

    Returns:
        What a call returns: y in the shape of x.

    Raises:
        TypeError: for an x that is not floating, a knob that is no number.
        ValueError: for an x of less than two axes or of other channels, one value per channel in
            training (without an axis_name), noise of another shape, knobs out of range.

    Transformations, dtypes: as `MixtureNorm`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxnorm
        >>> layer = jaxnorm.linen.normalizers.StochasticNorm(samples=32)
        >>> x = jax.random.normal(jax.random.key(0), (16, 3))
        >>> variables = layer.init(jax.random.key(1), x, use_running_average=True)
        >>> y, new = layer.apply(
        ...     variables, x, use_running_average=False, mutable=["batch_stats"],
        ...     rngs={"noise": jax.random.key(2)})
        >>> y.shape
        (16, 3)

    References:
        Shekhovtsov, Flach, "Stochastic Normalizations as Bayesian Learning", ACCV 2018, arXiv
        1811.00639. Read were the abstract and the introduction; the distributions of U and V are
        from memory. Remembered is also U xhat + V in the place of U (xhat + V): the latter is what
        follows from BatchNorm, derived above. What they normalize with are weight and analytic
        normalization, not running statistics.
    """

    samples: int = 64
    statistics: str = "running"

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        use_running_average: bool | None = None,
        *,
        noise: jax.Array | None = None,
    ) -> jax.Array:
        """Normalize x with the noise [2, C], U and V."""
        evaluates = self.evaluates(use_running_average)
        check_channels(x.shape, self.axis, None)
        check_count("samples", self.samples, 2)
        channels = x.shape[self.axis]
        state, store = self.running(initial_moments(channels))
        if noise is None and not evaluates:
            noise = draw_batch_noise(self.make_rng("noise"), self.samples, channels)
        y, new = stochastic_norm(
            x,
            state,
            *self.affine(channels),
            noise=noise,
            use_running_average=evaluates,
            statistics=self.statistics,
            **self.settings(),
        )
        if not evaluates:
            store(new)
        return y
