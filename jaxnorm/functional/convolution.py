"""The rule in convolutions and transposed convolutions of any number of dimensions."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm import checks
from jaxnorm.activations import Gate
from jaxnorm.backward.linear_operation import linear_operation
from jaxnorm.functional.operation import one_dtype
from jaxnorm.operations.convolution import (
    Padding,
    broadcast,
    convolution,
    flatten_batch,
    transposed_convolution,
)
from jaxnorm.rule import Rule
from jaxnorm.statistics.moments import AxisName


def neuronwise_conv(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    *,
    strides: int | Sequence[int] | None = 1,
    padding: Padding = "SAME",
    input_dilation: int | Sequence[int] | None = 1,
    kernel_dilation: int | Sequence[int] | None = 1,
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
    x, kernel, bias = one_dtype(x, kernel, bias)
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
    x, kernel, bias = one_dtype(x, kernel, bias)
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
