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
from jaxnorm.statistics.batch import AxisName


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
    neuron_mask: Any = None,
    **kwargs: Any,
) -> Any:
    """A convolution in 1, 2, 3 or more dimensions. As `neuronwise_dense`, for images.

    Forward (exact):      z = conv(x, kernel) + bias, as `flax.linen.Conv` computes it
    Backward (modified):  as `neuronwise_dense`, where a sample is an image *and* a position, an
                          input is a channel at a tap of the window, and zero padding counts as
                          samples of value 0 (the bias acts there too)

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
        gate: as in `neuronwise_dense`, like the next three.
        rule: `statistics_rows` counts whole images.
        axis_name: over which the batch is spread.
        statistics: the layer's tracked ones.
        neuron_mask: as in `neuronwise_dense`; of the images, or of the positions of z too.
        **kwargs: for `conv_general_dilated`: precision, preferred_element_type, out_sharding.

    Returns:
        z [..., *space', O]; with ``gate=DEFERRED`` (z, handle), see `tell_gate`.

    Raises:
        TypeError, ValueError: as `neuronwise_dense`, and for windows, strides, padding, groups that
            do not fit.

    Cost: two kernel-gradient products more, of which one at a time is in memory.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxnorm import neuronwise_conv
        >>> x, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 16))
        >>> neuronwise_conv(x, kernel, jnp.zeros(16), strides=2, gate="relu").shape
        (2, 4, 4, 16)

    References:
        Convolutional BNP, Lange, Helfrich, Ye (2022), section 4, takes the statistics over images
        and positions alike.
    """
    x, kernel, bias = one_dtype(x, kernel, bias)
    rank = kernel.ndim - 2
    checks.check_window(kernel.shape)
    checks.check_images(x.shape, kernel.shape, feature_group_count)
    checks.check_mask(mask, kernel.shape)
    batch, x = x.shape[: x.ndim - rank - 1], flatten_batch(x, rank)
    operation, pads, mode = convolution(
        x.shape,
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
        x = jnp.pad(x, pads, mode=mode)
    kernel = kernel if mask is None else kernel * jnp.asarray(mask, kernel.dtype)
    out = linear_operation(
        operation,
        x,
        kernel,
        bias,
        gate=gate,
        rule=rule,
        axis_name=axis_name,
        statistics=statistics,
        neuron_mask=neuron_mask,
        batch_shape=batch,
    )
    return _unflattened(out, batch)


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
    neuron_mask: Any = None,
    **kwargs: Any,
) -> Any:
    """A transposed convolution. As `neuronwise_conv`, with the arguments of Flax's.

    Forward (exact):      z = conv_transpose(x, kernel) + bias, as `flax.linen.ConvTranspose`
    Backward (modified):  as `neuronwise_conv`; where a stride leaves a tap without an input, the
                          tap reads a sample of value 0, as it does in the padding

    The kernel is [*window, C, O]; with `transpose_kernel`, which flips the window and swaps the
    last two axes, [*window, O, C]. `kwargs` are those of `jax.lax.conv_transpose`: precision,
    preferred_element_type.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxnorm import neuronwise_conv_transpose
        >>> x, kernel = jnp.ones((2, 4, 4, 3)), jnp.ones((3, 3, 3, 16))
        >>> neuronwise_conv_transpose(x, kernel, strides=2, gate="relu").shape
        (2, 8, 8, 16)
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
    batch, x = x.shape[: x.ndim - rank - 1], flatten_batch(x, rank)
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
        x,
        kernel,
        bias,
        gate=gate,
        rule=rule,
        axis_name=axis_name,
        statistics=statistics,
        neuron_mask=neuron_mask,
        batch_shape=batch,
    )
    return _unflattened(out, batch)


def _unflattened(out: Any, batch: tuple[int, ...]) -> Any:
    """The output (and its handle) with all axes of the batch."""
    return out if len(batch) == 1 else jax.tree.map(lambda z: z.reshape(*batch, *z.shape[1:]), out)
