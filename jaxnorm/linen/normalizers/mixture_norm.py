"""Mixture Normalization as a layer of Flax linen."""

import jax
from flax import linen as nn

from jaxnorm.linen.normalizers.running import RunningStatistics
from jaxnorm.normalizers.mixture_norm import initial_mixture, mixture_norm
from jaxnorm.normalizers.refusals import check_channels, check_count


class MixtureNorm(RunningStatistics):
    """Mixture Normalization: by the Gaussians of a mixture that is fitted to the mini-batch.

    Samples are the vectors [C] of all examples and positions. With the responsibilities
    ``p(k|x_i)`` of K Gaussians with diagonal covariances:

        nu_ki = p(k|x_i) / sum_i p(k|x_i)        lambda_k = mean_i p(k|x_i)
        mean_k = sum_i nu_ki x_i                 var_k = sum_i nu_ki (x_i - mean_k)^2
        xhat_i = sum_k p(k|x_i) / sqrt(lambda_k) (x_i - mean_k) / sqrt(var_k + epsilon)
        y = scale xhat + bias

    **Train**: the mixture is fitted by a fixed number of steps of EM, which begin, without random
    numbers, at equal shares, the variance of the batch, and means at the batch's mean plus its
    deviation times the normal quantiles (k + 1/2) / K in all channels at once; or at `seeds`. So
    component 0 is the low one from batch to batch, and the running averages of shares, means and
    variances are of like with like. Each channel counts in units of its spread. Gradients flow
    through mean_k, var_k and x; by default not through the responsibilities and shares, which are
    taken as given, as the M step of EM takes them (``responsibility_gradient=True``: through all
    steps of EM too). **Eval**: responsibilities and statistics are those of the running mixture.

    One component is BatchNorm, exactly. K components that share all samples equally scale by
    sqrt(K), as the formula has it.

    Args:
        components: K.
        steps: of EM in training, default 5; 0 for the responsibilities of the beginning.
        floor: added to the components' variances within EM, in units of the channel's variance,
            default 1e-3: so that no component shrinks onto a sample.
        responsibility_gradient: see above, default False.
        use_running_average, axis, momentum, epsilon, dtype, param_dtype, use_bias, use_scale,
            bias_init, scale_init, axis_name, axis_index_groups: as `flax.linen.BatchNorm`; momentum
            is the weight of the old, default 0.99, in torchnorm 0.01 of the new, the same.

    Collections: params {scale, bias}, [C]; batch_stats {weight [K], mean [K, C], var [K, C]},
    float32, at first equal shares, 0 and 1. Biased variances.

    Returns:
        What a call returns: y in the shape of x.

    Raises:
        TypeError: for an x that is not floating, a knob that is no number.
        ValueError: for an x of less than two axes or of other channels, one value per channel in
            training (without an axis_name), seeds of another shape, knobs out of range.

    Transformations: any; ``jit`` does not compile again, for nothing depends on the data's values.
    Under ``vmap`` the batch is each example's. Dtypes: computed in at least float32; the result has
    `dtype`, or the widest dtype of x and the parameters. Large means cost no digits.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxnorm
        >>> layer = jaxnorm.linen.normalizers.MixtureNorm(components=2)
        >>> x = jnp.concatenate([jnp.linspace(-6, -4, 9), jnp.linspace(4, 6, 9)])[:, None]
        >>> variables = layer.init(jax.random.key(0), x, use_running_average=False)
        >>> y, new = layer.apply(
        ...     variables, x, use_running_average=False, mutable=["batch_stats"])
        >>> round(float(y[:9].mean()), 4), round(float(y[:9].var()), 3)
        (0.0, 2.0)

    References:
        Kalayeh, Shah, "Training Faster by Separating Modes of Variation in Batch-normalized
        Models", TPAMI 2019, arXiv 1806.02892. Read were the abstract and summaries; no code was
        published. The formula of xhat is from memory. Theirs may differ: how EM begins (from
        k-means++, as remembered), its steps, the floor, the gradient of the responsibilities.
    """

    components: int = 2
    steps: int = 5
    floor: float = 1e-3
    responsibility_gradient: bool = False

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        use_running_average: bool | None = None,
        *,
        seeds: jax.Array | None = None,
    ) -> jax.Array:
        """Normalize x; `seeds` [K, C] are the means where EM begins, in units of x."""
        evaluates = self.evaluates(use_running_average)
        check_channels(x.shape, self.axis, None)
        check_count("components", self.components, 1)
        channels = x.shape[self.axis]
        state, store = self.running(initial_mixture(self.components, channels))
        y, new = mixture_norm(
            x,
            state,
            *self.affine(channels),
            use_running_average=evaluates,
            steps=self.steps,
            floor=self.floor,
            responsibility_gradient=self.responsibility_gradient,
            seeds=seeds,
            **self.settings(),
        )
        if not evaluates:
            store(new)
        return y
