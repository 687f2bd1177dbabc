"""`OnlineNorm` of linen."""

import dataclasses

import jax
from flax import linen as nn

from jaxnorm.linen.normalizers.normalizer import Affine
from jaxnorm.normalizers.online_norm import (
    OnlineControl,
    initial_online_control,
    initial_online_state,
    online_norm,
)

#: The collection of the control process.
COLLECTION = "backward_stats"


class OnlineNorm(Affine):
    """Online Normalization: no statistics of the batch, each sample is normalized by those before.

    Forward, in training, sample by sample (t), a = momentum::

        y_t = (x_t - m) / sqrt(v + epsilon)
        v  <- a v + (1 - a) var_space(x_t) + a (1 - a) (mean_space(x_t) - m)^2
        m  <- m + (1 - a) (mean_space(x_t) - m)

    and out = guard(scale y + bias). In evaluation m and v stay: y = (x - m) / sqrt(v + epsilon).

    Backward, its own. The derivative of the forward pass takes m and v as constants; that of a
    normalization has no component along y, nor along the constant. A control process takes these
    off, not in each batch but in the mean over the steps; b = backward_momentum, g_t the gradient
    of y_t, v what y_t was divided by::

        g'   = g_t - (1 - b) V y_t                          V <- V + mean_space(g' y_t)
        g_x  = g' / sqrt(v + epsilon) - (1 - b) U           U <- U + mean_space(g_x)

    Scale, bias and guard have their usual gradients.

    **The state of the backward pass**, U and V, is the collection ``backward_stats`` {gradient,
    projection}. Nothing can be written while JAX differentiates, so it comes beside the gradients:
    the gradient with respect to ``backward_stats`` is what this step adds to it. Differentiate by
    it too, and add, as below. Without that every batch begins with the same U and V, at first 0.
    Like any gradient it adds up over calls, micro-batches and devices, and is 0 for a layer that
    the loss does not reach. U and V have the unit of the gradient: a loss scale has to stay the
    same, and clipping and the optimizer are to see ``params`` alone. (It is not in Flax's
    ``_overwrite_with_gradient``: two calls of a layer would leave the sum of both states there.)

    One after the other are only the statistics, one number per channel and sample; the rest is
    done for the whole batch at once. The order of the samples in a batch is the order in time.

    m starts at 0 and v at 1, and 1 / (1 - a) = 1000 samples pass before they fit: until then inputs
    far from that, a mean of 1e4 say, are at the clamp and let no gradient through; with another
    guard V diverges (its factor is 1 - (1 - b) mean(y^2)). Standardize the inputs of the model.

    Attributes:
        use_running_average, axis, dtype, param_dtype, use_bias, use_scale, bias_init, scale_init:
            as `BatchRenorm`.
        momentum: a, weight of the old statistics, in [0, 1]; default 0.999. (In PyTorch that of
            the new, default 0.001: the same. The paper's alpha_f.)
        epsilon: added to the variance, and in layer scaling to the second moment; default 1e-5.
        backward_momentum: (keyword) b; default 0.99. (In PyTorch 0.01. The paper's alpha_b.)
        guard: (keyword) against outputs that the statistics do not fit: "activation_clamping"
            (default), min(max(y, -clamp), clamp), without a gradient outside; "layer_scaling",
            y / sqrt(mean(y^2) + epsilon) over space and channels of each sample; None. (The default
            of the published code, whose docstring names the other.)
        clamp: (keyword, default 5) its limit, in units of y.

    Variables: ``params`` scale [C], bias [C]; ``batch_stats`` mean [C] (initially 0), var [C] (1),
    written in training; ``backward_stats`` gradient [C], projection [C] (0), read in training.

    Raises:
        TypeError, ValueError: as `BatchRenorm`, of batches of any size; for an unknown guard; in
            training without ``backward_stats``.

    Transformations: all of JAX's and Flax's, but in training no forward mode and no second
    derivative. Under `jax.jit` the batch is one sequence, over all devices; mapped over devices
    each has its own, so average the states over them.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxnorm
        >>> layer = jaxnorm.linen.normalizers.OnlineNorm(use_running_average=False)
        >>> x = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
        >>> variables = layer.init(jax.random.key(1), x)
        >>> def loss(params, backward_stats):
        ...     given = {**variables, "params": params, "backward_stats": backward_stats}
        ...     y, new = layer.apply(given, x, mutable=["batch_stats"])
        ...     return jnp.sum(y**2), new
        >>> old = variables["backward_stats"]
        >>> grads, new = jax.grad(loss, argnums=(0, 1), has_aux=True)(variables["params"], old)
        >>> variables = {**new, "params": variables["params"]}  # or stepped by grads[0]
        >>> variables["backward_stats"] = jax.tree.map(jnp.add, old, grads[1])
        >>> jax.tree.map(jnp.shape, variables["backward_stats"])
        {'gradient': (3,), 'projection': (3,)}

    References:
        Chiley et al., Online Normalization for Training Neural Networks, NeurIPS 2019,
        arXiv:1905.05894; the equations with space, the defaults and the order of scale, bias and
        guard are those of github.com/Cerebras/online-normalization (online_norm_pytorch,
        numpy_on), read there and run beside `torchnorm`'s: equal to rounding, all states too.
    """

    momentum: float = 0.999
    backward_momentum: float = dataclasses.field(default=0.99, kw_only=True)
    guard: str | None = dataclasses.field(default="activation_clamping", kw_only=True)
    clamp: float = dataclasses.field(default=5.0, kw_only=True)

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool | None = None) -> jax.Array:
        """Apply the layer to x [N, *space, C]."""
        train = self.trains(use_running_average)
        x = self.channels_last(x)
        scale, bias = self.scale_and_bias(x.shape[-1])
        state, write = self.stats(initial_online_state(x.shape[-1]))
        y, new = online_norm(
            x,
            state,
            self._control(x.shape[-1], train=train),
            scale,
            bias,
            train=train,
            momentum=self.momentum,
            epsilon=self.epsilon,
            backward_momentum=self.backward_momentum,
            guard=self.guard,
            clamp=self.clamp,
        )
        if train:
            write(new)
        return self.finished(y, x, scale, bias)

    @nn.nowrap
    def _control(self, channels: int, *, train: bool) -> OnlineControl:
        """The state of the backward pass, which evaluation does not ask for."""
        initial = initial_online_control(channels)
        if not train and not self.is_initializing():
            return initial
        if train and not self.has_variable(COLLECTION, "gradient"):
            raise ValueError(
                f"{COLLECTION}: got none in training, expected those of model.init, or of the step "
                "before; give them beside params, and differentiate by both"
            )
        values = (
            self.variable(COLLECTION, name, lambda value=value: value).value
            for name, value in initial._asdict().items()
        )
        return OnlineControl(*values)
