"""The rule as functions: one for each operation of Flax, and one for any other."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm import checks
from jaxnorm.activations import Gate
from jaxnorm.backward.deferred import tell_gate as tell_gate
from jaxnorm.backward.linear_operation import linear_operation as linear_operation
from jaxnorm.operations.convolution import (
    Padding,
    broadcast,
    convolution,
    flatten_batch,
    transposed_convolution,
)
from jaxnorm.operations.einsum import parse
from jaxnorm.operations.linear import LinearOperation, dense, is_placed
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
) -> Any:
    """A dense layer whose weight gradient is taken in standardized coordinates, per neuron.

    Forward (exact):      z[..., o] = sum_i x[..., i] kernel[i, o] + bias[o]
    Backward (modified):  g_x = g_z W^T                                  (the true one)
                          g_W <- (g_W - mean g_b) / sigma^2              (not the VJP)
                          g_b <- g_b - sum_i mean[i, :] g_W[i, :]        (with the new g_W)

    where mean and sigma [I, O] are the moments of each neuron's inputs over the samples on which it
    is active, weighted by the activation's derivative (see `Rule`, which also selects the other
    members of the family). Without a bias nothing can absorb a mean: then mean = 0 and sigma^2 is
    the second moment about zero. That is ``gradient="preconditioned"``, the default of this
    function unless it is given `statistics`; nothing is remembered between calls.

    Args:
        x: [..., I], float16, bfloat16, float32 or float64; all leading axes are samples (N).
        kernel: [I, O].
        bias: [O] or None.
        gate: the activation that follows: a name of `jax.nn`, an elementwise callable, or None if
            none follows. It is differentiated, not applied, and has no default, because a guess
            would silently be another method. With None the moments are the layer's own. A
            `JointGate` reads several neurons at once; with `DEFERRED` the activation is told later.
        rule: which moments and which form of the gradient. With ``gradient="plain"`` this is the
            plain layer, gradient and all, bit for bit.
        axis_name: name or names of mapped axes (`jax.shard_map`, `jax.vmap`) over which the batch
            is spread; the statistics are then those of the whole batch. The gradient must be taken
            inside the mapped function. Under `jax.jit` on a sharded batch it is not needed. Without
            effect on `statistics`, which add up as gradients do.
        statistics: the layer's tracked statistics (see `jaxnorm.linen.init_statistics`), or None.
            With them the default is ``gradient="plain_with_statistics"``: the gradient with
            respect to them is the statistics of this batch, and g_W and g_b are the plain ones, for
            `in_neuron_coordinates`. Where the rule names another gradient they are not used.

    Returns:
        z [..., O], in the common dtype of the arguments; with ``gate=DEFERRED`` (z, handle), see
        `tell_gate`.

    Raises:
        TypeError: for an x, kernel or bias that is not floating-point, a gate or rule of another
            type.
        ValueError: for shapes that do not fit, an unknown gate or the statistics of another layer
            or rule; and, where the gradient is adapted, for an empty batch or a single sample (its
            own mean: the weights would never learn).

    Numerics: statistics and the adapted gradient in at least float32, about a shift, so large
    means do not cancel (in float32 sigma^2 does lose digits for a neuron whose active samples lie
    hundreds of their standard deviations from the layer's mean). g_x, g_W, g_b have the dtype of
    x, kernel, bias; g_W scales with 1 / x^2, so mind the range of float16. A neuron that is never
    active has the layer's moments; one whose moments are not finite (NaN or Inf in the batch, or
    |x| beyond about 1e18 in float32) has the plain gradient.

    Cost: at most two kernel-gradient products more, over `statistics_rows`; none in the forward
    pass, which keeps phi'(z) of these rows (a mask for ReLU, at least float32 otherwise).

    Transformations: jit, grad, scan and remat. Under vmap each mapped example has its own
    statistics, over its own leading axes, unless `axis_name` names the mapped axis. Gradients
    summed over micro-batches are those of micro-batch statistics. The gradient of the kernel alone
    is that of kernel and bias together: where only one of them is to learn, use
    ``gradient="plain"``. Forward mode (jvp, jacfwd, hessian) raises JAX's TypeError for custom_vjp;
    use ``gradient="plain"`` there. Second derivatives (grad of grad) are those of the adapted
    gradient.

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
        >>> round(float(jax.grad(loss)(kernel, bias, exact)[0, 0]), 4)  # (9 - 11 * 1) / (2 / 3)
        -3.0

    References:
        The thesis topic "Can We Improve BatchNorm? Neuron-wise Input Normalization for Neural
        Networks" (TU Munich); Lange, Helfrich, Ye, JMLR 23(72), 2022, arXiv 2108.01110 (uniform
        weights); Ollivier, arXiv 1303.0818 (error weights).
    """
    x, kernel, bias = _one_dtype(x, kernel, bias)
    checks.check_matrix("kernel", kernel.shape, "[I, O]")
    checks.check_inputs(x.shape, kernel.shape[0])
    return linear_operation(
        dense(), x, kernel, bias, gate=gate, rule=rule, axis_name=axis_name, statistics=statistics
    )


def neuronwise_conv(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    *,
    strides: int | Sequence[int] = 1,
    padding: Padding = "SAME",
    input_dilation: int | Sequence[int] = 1,
    kernel_dilation: int | Sequence[int] = 1,
    feature_group_count: int = 1,
    mask: Any = None,
    conv_general_dilated: Callable[..., jax.Array] = lax.conv_general_dilated,
    gate: Gate,
    rule: Rule = Rule(),
    axis_name: AxisName | None = None,
    statistics: Any = None,
    **kwargs: Any,
) -> Any:
    """A convolution in 1, 2, 3 or more dimensions with the rule of `neuronwise_dense`.

    Forward (exact):      z = conv(x, kernel) + bias, as `flax.linen.Conv` computes it
    Backward (modified):  g_x true; g_W and g_b as in `neuronwise_dense`, where a sample is an
                          image *and* a position, an input is a channel at a tap of the window, and
                          zero padding counts as samples of value 0 (the bias acts there too)

    All sums are kernel gradients of the convolution itself: no patches are ever laid out. A tap
    under circular, reflected or no padding sees no zeros.

    Args:
        x: [..., *space, C], channels last; all axes before the spatial ones are the batch.
        kernel: [*window, C / feature_group_count, O]; its rank tells the number of dimensions.
        bias: [O] or None.
        strides: as in `flax.linen.Conv`, like the next five; an int or one per dimension.
        padding: ``"SAME"``, ``"VALID"``, ``"CIRCULAR"``, ``"REFLECT"``, ``"CAUSAL"`` (1-d), an int
            or one int or (low, high) per dimension.
        input_dilation: the zeros it puts between inputs count as padding.
        kernel_dilation: the dilation of the window.
        feature_group_count: number of groups; as many as channels is a depthwise convolution.
        mask: 0 and 1 in the kernel's shape: entries that are switched off, or None. A constant.
        conv_general_dilated: Flax's operation.
        gate: as in `neuronwise_dense`.
        rule: as in `neuronwise_dense`; `statistics_rows` counts whole images.
        axis_name: as in `neuronwise_dense`.
        statistics: as in `neuronwise_dense`.
        **kwargs: for `conv_general_dilated`: precision, preferred_element_type, out_sharding.

    Returns:
        z [..., *space', O]; with ``gate=DEFERRED`` (z, handle), see `tell_gate`.

    Raises:
        TypeError, ValueError: as `neuronwise_dense`, and for windows, strides, padding, groups that
            do not fit.

    Transformations, dtypes, numerics: as `neuronwise_dense`. Cost: two kernel-gradient products
    more, of which one at a time is in memory.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxnorm import neuronwise_conv
        >>> x, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 16))
        >>> neuronwise_conv(x, kernel, jnp.zeros(16), strides=2, gate="relu").shape
        (2, 4, 4, 16)

    References:
        As `neuronwise_dense`; convolutional BNP, Lange, Helfrich, Ye (2022), section 4, takes the
        statistics over images and positions alike.
    """
    x, kernel, bias = _one_dtype(x, kernel, bias)
    rank = kernel.ndim - 2
    checks.check_window(kernel.shape)
    checks.check_images(x.shape, kernel.shape, feature_group_count)
    checks.check_mask(mask, kernel.shape)
    batch = x.shape[: x.ndim - rank - 1]
    flat = flatten_batch(x, rank)
    operation, pads, mode = convolution(
        flat.shape,
        kernel.shape[:-2],
        strides=broadcast("strides", strides, rank),
        padding=padding,
        input_dilation=broadcast("input_dilation", input_dilation, rank),
        kernel_dilation=broadcast("kernel_dilation", kernel_dilation, rank),
        groups=feature_group_count,
        mask=mask,
        conv_general_dilated=conv_general_dilated,
        **kwargs,
    )
    if any(map(any, pads)):
        flat = jnp.pad(flat, pads, mode=mode)
    kernel = kernel if mask is None else kernel * jnp.asarray(mask, kernel.dtype)
    out = linear_operation(
        operation,
        flat,
        kernel,
        bias,
        gate=gate,
        rule=rule,
        axis_name=axis_name,
        statistics=statistics,
    )
    return out if len(batch) == 1 else jax.tree.map(lambda z: z.reshape(*batch, *z.shape[1:]), out)


def neuronwise_conv_transpose(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    *,
    strides: int | Sequence[int] | None = 1,
    padding: Padding = "SAME",
    kernel_dilation: int | Sequence[int] | None = 1,
    transpose_kernel: bool = False,
    mask: Any = None,
    gate: Gate,
    rule: Rule = Rule(),
    axis_name: AxisName | None = None,
    statistics: Any = None,
    **kwargs: Any,
) -> Any:
    """A transposed convolution with the rule of `neuronwise_dense`.

    Forward (exact):      z = conv_transpose(x, kernel) + bias, as `flax.linen.ConvTranspose`
    Backward (modified):  as `neuronwise_conv`; where a stride leaves a tap without an input, the
                          tap reads a sample of value 0, as it does in the padding

    Args:
        x: [..., *space, C], channels last.
        kernel: [*window, C, O], with `transpose_kernel` [*window, O, C].
        bias: [O] or None.
        strides: as in `flax.linen.ConvTranspose`, like the next four.
        padding: ``"SAME"``, ``"VALID"``, ``"CIRCULAR"``, an int or one int or pair per dimension.
        kernel_dilation: the dilation of the window.
        transpose_kernel: flip the window and swap its last two axes.
        mask: 0 and 1 in the kernel's shape, or None. A constant.
        gate: as in `neuronwise_conv`.
        rule: as in `neuronwise_conv`.
        axis_name: as in `neuronwise_conv`.
        statistics: as in `neuronwise_conv`.
        **kwargs: for `jax.lax.conv_transpose`: precision, preferred_element_type.

    Returns:
        z [..., *space', O]; with ``gate=DEFERRED`` (z, handle), see `tell_gate`.

    Raises:
        TypeError, ValueError: as `neuronwise_conv`.

    Transformations, dtypes, numerics, cost: as `neuronwise_conv`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxnorm import neuronwise_conv_transpose
        >>> x, kernel = jnp.ones((2, 4, 4, 3)), jnp.ones((3, 3, 3, 16))
        >>> neuronwise_conv_transpose(x, kernel, strides=2, gate="relu").shape
        (2, 8, 8, 16)

    References:
        As `neuronwise_conv`.
    """
    x, kernel, bias = _one_dtype(x, kernel, bias)
    rank = kernel.ndim - 2
    checks.check_window(kernel.shape)
    checks.check_mask(mask, kernel.shape)
    if mask is not None:
        kernel = kernel * jnp.asarray(mask, kernel.dtype)
    if transpose_kernel:
        kernel = jnp.swapaxes(kernel, -1, -2)
        mask = None if mask is None else jnp.swapaxes(jnp.asarray(mask), -1, -2)
    checks.check_images(x.shape, kernel.shape, 1)
    batch = x.shape[: x.ndim - rank - 1]
    operation = transposed_convolution(
        kernel.shape[:-2],
        strides=broadcast("strides", strides, rank),
        padding=padding,
        kernel_dilation=broadcast("kernel_dilation", kernel_dilation, rank),
        transpose_kernel=transpose_kernel,
        mask=mask,
        **kwargs,
    )
    out = linear_operation(
        operation,
        flatten_batch(x, rank),
        kernel,
        bias,
        gate=gate,
        rule=rule,
        axis_name=axis_name,
        statistics=statistics,
    )
    return out if len(batch) == 1 else jax.tree.map(lambda z: z.reshape(*batch, *z.shape[1:]), out)


def neuronwise_einsum(
    equation: str,
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    *,
    gate: Gate,
    rule: Rule = Rule(),
    axis_name: AxisName | None = None,
    statistics: Any = None,
    einsum_op: Callable[..., jax.Array] = jnp.einsum,
    **kwargs: Any,
) -> Any:
    """Any product of x and a kernel, with the rule of `neuronwise_dense`.

    Forward (exact):      z = einsum(equation, x, kernel) + bias
    Backward (modified):  as `neuronwise_dense`, where the labels that x and z share are the
                          samples, those that x and the kernel share are the inputs, those that the
                          kernel and z share tell the neurons apart, and a label of all three
                          separates groups that each have their own inputs and neurons

    So the projections of attention, `flax.linen.DenseGeneral` and `flax.linen.Einsum` are dense
    layers.

    Args:
        equation: as for `jax.numpy.einsum`, two operands and a result: ``"...td,dhk->...thk"``. A
            label that occurs in one of the three only is refused, ``...`` in the kernel too.
        x: any shape, floating.
        kernel: any shape.
        bias: the axes that z shares with the kernel, in z's order, or None.
        gate: as in `neuronwise_dense`.
        rule: as in `neuronwise_dense`; `statistics_rows` counts along all sample
            axes where they come first in x and z, otherwise along the first of them.
        axis_name: as in `neuronwise_dense`.
        statistics: as in `neuronwise_dense`.
        einsum_op: what computes it, (equation, x, kernel, **kwargs) -> z, as in `flax.nnx.Einsum`.
        **kwargs: for `einsum_op`: precision, preferred_element_type, out_sharding.

    Returns:
        z; with ``gate=DEFERRED`` (z, handle), see `tell_gate`.

    Raises:
        TypeError, ValueError: as `neuronwise_dense`, and for an equation that does not fit.

    Transformations, dtypes, numerics, cost: as `neuronwise_dense`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxnorm import neuronwise_einsum
        >>> x, kernel, bias = jnp.ones((2, 5, 8)), jnp.ones((8, 4, 3)), jnp.zeros((4, 3))
        >>> neuronwise_einsum("btd,dhk->bthk", x, kernel, bias, gate=None).shape
        (2, 5, 4, 3)

    References:
        As `neuronwise_dense`.
    """
    x, kernel, bias = _one_dtype(x, kernel, bias)
    axes = parse(equation, x.shape, kernel.shape)

    def product(x, kernel, **other):
        return einsum_op(axes.equation, x, kernel, **(kwargs | other))

    return linear_operation(
        axes.operation(product, is_placed(kwargs)),
        x,
        kernel,
        bias,
        gate=gate,
        rule=rule,
        axis_name=axis_name,
        statistics=statistics,
    )


def neuronwise_op(
    op: Callable[[jax.Array, jax.Array], jax.Array],
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    *,
    groups: int = 1,
    padded: bool = True,
    spatial_axes: int = 0,
    gate: Gate,
    rule: Rule = Rule(),
    axis_name: AxisName | None = None,
    statistics: Any = None,
) -> Any:
    """Any operation that is linear in its kernel, with the rule of `neuronwise_dense`.

    Forward (exact):      z = op(x, kernel) + bias
    Backward (modified):  as `neuronwise_dense`; all sums are kernel gradients of `op`

    Each entry of the kernel must meet at most one entry of x per sample, with coefficient 1, as in
    any product or convolution; op must work for any number of outputs (and, where padded, of
    channels) that `groups` divides, and for the first rows of x.

    Args:
        op: (x, kernel) -> z, linear in the kernel.
        x: [..., C], channels last; all other axes are samples.
        kernel: [..., C / groups, O]; all other axes are taps.
        bias: [O] or None.
        groups: into how many groups channels and outputs fall.
        padded: whether an entry of the kernel may meet no x at all in some samples, which then
            count as x = 0. False saves a small product.
        spatial_axes: how many axes of x between batch and channels are positions: only whole
            positions are left out by `statistics_rows`.
        gate: as in `neuronwise_dense`.
        rule: as in `neuronwise_dense`.
        axis_name: as in `neuronwise_dense`.
        statistics: as in `neuronwise_dense`.

    Returns:
        z [..., O]; with ``gate=DEFERRED`` (z, handle), see `tell_gate`.

    Raises:
        TypeError, ValueError: as `neuronwise_dense`, and for an op that is not linear in the kernel
            or has not O outputs.

    Transformations, dtypes, numerics, cost: as `neuronwise_dense`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxnorm import neuronwise_op
        >>> def causal(x, kernel):  # z[t] = x[t] k[0] + x[t - 1] k[1]
        ...     back = jnp.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1]
        ...     return x @ kernel[0] + back @ kernel[1]
        >>> x, kernel = jnp.ones((4, 6, 3)), jnp.ones((2, 3, 5))
        >>> neuronwise_op(causal, x, kernel, jnp.zeros(5), spatial_axes=1, gate="relu").shape
        (4, 6, 5)

    References:
        As `neuronwise_dense`.
    """
    x, kernel, bias = _one_dtype(x, kernel, bias)
    checks.check_linear(op, x, kernel)
    operation = LinearOperation(op, groups, padded, spatial_axes)
    return linear_operation(
        operation, x, kernel, bias, gate=gate, rule=rule, axis_name=axis_name, statistics=statistics
    )


def _one_dtype(x: Any, kernel: Any, bias: Any) -> Any:
    """The arrays in their common dtype."""
    arrays = {"x": x, "kernel": kernel} | ({} if bias is None else {"bias": bias})
    arrays = {name: jnp.asarray(array) for name, array in arrays.items()}
    for name, array in arrays.items():
        checks.check_floating(name, array)
    dtype = jnp.result_type(*arrays.values())
    x, kernel, *rest = (array.astype(dtype) for array in arrays.values())
    return x, kernel, rest[0] if rest else None
