"""The rule in a dense layer: `neuronwise_dense`, whose text holds for all the functions."""

from typing import Any

import jax

from jaxnorm import checks
from jaxnorm.activations import Gate
from jaxnorm.backward.linear_operation import linear_operation
from jaxnorm.functional.operation import one_dtype
from jaxnorm.operations.linear import dense
from jaxnorm.rule import Rule
from jaxnorm.statistics.batch import AxisName


def neuronwise_dense(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    *,
    gate: Gate,
    rule: Rule = Rule(),
    axis_name: AxisName | None = None,
    statistics: Any = None,
    neuron_mask: Any = None,
) -> Any:
    """A dense layer whose weight gradient is taken in standardized coordinates, per neuron.

    Forward (exact):      z[..., o] = sum_i x[..., i] kernel[i, o] + bias[o]
    Backward (modified):  g_x = g_z W^T                                  (the true one)
                          g_W <- (g_W - mean g_b) / sigma^2              (not the VJP)
                          g_b <- g_b - sum_i mean[i, :] g_W[i, :]        (with the new g_W)

    where g_z is the gradient of the loss at z, and mean and sigma [I, O] are the moments of each
    neuron's inputs over the samples on which it is active, weighted by the activation's derivative
    phi'(z) (see `Rule`, which also selects the other members of the family). Without a bias nothing
    can absorb a mean: then mean = 0 and sigma^2 is the second moment about zero. That is
    ``gradient="preconditioned"``, the default of this function unless it is given `statistics`;
    nothing is remembered between calls.

    Args:
        x: [..., I], float16, bfloat16, float32 or float64; all leading axes are samples (N).
        kernel: [I, O].
        bias: [O] or None.
        gate: the activation that follows; its derivative gates the neuron: it says on which
            samples, or how much, the neuron learns. A name of `jax.nn` (``"relu"``), an elementwise
            callable, or None if none follows: then the moments are the layer's own. It is not
            applied, and has no default, because a guess would silently be another method. A
            `JointGate` reads several neurons at once; with `DEFERRED` the activation is told later.
        rule: what the gradient is standardized by, and how; see `Rule`. With
            ``gradient="plain"`` this is the plain layer, gradient and all, bit for bit.
        axis_name: name or names of mapped axes (`jax.shard_map`, `jax.vmap`) over which the batch
            is spread, as of Flax's BatchNorm; the statistics are then those of the whole batch. The
            gradient must be taken inside the mapped function. Under `jax.jit` on a sharded batch it
            is not needed. Without effect on `statistics`, which add up as gradients do.
        statistics: the layer's tracked statistics (see `jaxnorm.linen.init_statistics`), or None.
            With them the default is ``gradient="plain_with_statistics"``: the gradient with
            respect to them is the statistics of this batch, and g_W and g_b are the plain ones, for
            `in_neuron_coordinates`. Where the rule names another gradient they are not used.
        neuron_mask: which samples the statistics count, booleans or weights >= 0 with the axes of
            the samples or the first of them, or None for all of them, or what
            `jaxnorm.neuron_mask` says, where it is in effect. For padding, which the loss does not
            count: the gradient is the sum that it was.

    Returns:
        z [..., O], in the common dtype of the arguments; with ``gate=DEFERRED`` (z, handle), see
        `tell_gate`.

    Raises:
        TypeError: for an x, kernel or bias that is not floating-point, a gate or rule of another
            type.
        ValueError: for shapes that do not fit, an unknown gate or the statistics of another layer
            or rule; and, where the gradient is adapted, for an empty batch or a single sample (its
            own mean: the weights would never learn).

    Numerics: statistics and the adapted gradient in at least float32, about a shift, so large means
    do not cancel (in float32 sigma^2 does lose digits for a neuron whose active samples lie
    hundreds of their standard deviations from the layer's mean). g_x, g_W, g_b have the dtype of x,
    kernel, bias; with ``step_size="standardized"`` g_W scales with 1 / x, so mind the range of
    float16. A neuron that is never active has the layer's moments; one whose moments are not finite
    (NaN or Inf in the batch, or |x| beyond about 1e18 in float32) has the plain gradient.

    Cost: at most two kernel-gradient products more, over `statistics_rows`; none in the forward
    pass, which keeps phi'(z) of these rows (a mask for ReLU, at least float32 otherwise).

    Transformations: jit, grad, scan and remat. Under vmap each mapped example has its own
    statistics, over its own leading axes, unless `axis_name` names the mapped axis. Gradients
    summed over micro-batches are those of micro-batch statistics. The gradient of the kernel alone
    is that of kernel and bias together: where only one of them is to learn, use
    ``gradient="plain"``. With `statistics` all derivatives are JAX's, of every order and in either
    mode; those by the input may be part of the loss (Laplacians, gradient penalties), and each
    forward call is recorded once. Without, forward mode (jvp, jacfwd, hessian) raises JAX's
    TypeError for custom_vjp (use ``gradient="plain"`` there), and second derivatives (grad of
    grad) are those of the adapted gradient.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxnorm import Rule, neuronwise_dense
        >>> x = jnp.array([[10.0], [12.0], [11.0], [-5.0]])
        >>> def loss(kernel, bias, rule):
        ...     z = neuronwise_dense(x, kernel, bias, gate="relu", rule=rule)
        ...     return jnp.sum(jax.nn.relu(z) * jnp.array([[1.0], [-1.0], [1.0], [1.0]]))
        >>> kernel, bias = jnp.ones((1, 1)), jnp.zeros(1)
        >>> float(jax.grad(loss)(kernel, bias, Rule(gradient="plain"))[0, 0])
        9.0
        >>> exact = Rule(shrinkage=0.0, damping=0.0)
        >>> round(float(jax.grad(loss)(kernel, bias, exact)[0, 0]), 4)  # 9 - 11 * 1: one input
        -2.0

    References:
        The thesis topic "Can We Improve BatchNorm? Neuron-wise Input Normalization for Neural
        Networks" (TU Munich); Lange, Helfrich, Ye, JMLR 23(72), 2022, arXiv 2108.01110 (uniform
        weights); Ollivier, arXiv 1303.0818 (error weights).
    """
    x, kernel, bias = one_dtype(x, kernel, bias)
    checks.check_matrix("kernel", kernel.shape, "[I, O]")
    checks.check_inputs(x.shape, kernel.shape[0])
    return linear_operation(
        dense(),
        x,
        kernel,
        bias,
        gate=gate,
        rule=rule,
        axis_name=axis_name,
        statistics=statistics,
        neuron_mask=neuron_mask,
    )
