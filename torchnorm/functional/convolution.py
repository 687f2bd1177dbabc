"""The rule in convolutions and transposed convolutions, one function for each of PyTorch's."""

from typing import Any

import torch

from torchnorm import checks
from torchnorm.activations import Gate
from torchnorm.backward.linear_operation import linear_operation
from torchnorm.operations.convolution import (
    Convolution,
    TransposedConvolution,
    broadcast,
    pad,
    swap_channels,
)
from torchnorm.rule import Rule


def neuronwise_conv1d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] | str = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
    *,
    gate: Gate,
    rule: Rule = Rule(),
    process_group: Any = None,
    statistics: Any = None,
) -> Any:
    """A 1-d convolution with the rule of `neuronwise_linear`; all as in `neuronwise_conv2d`.

    Forward (exact):      z = `torch.nn.functional.conv1d`
    Backward (modified):  as `neuronwise_conv2d`

    Raises:
        TypeError, ValueError: as `neuronwise_conv2d`.

    Example:
        >>> import torch
        >>> from torchnorm.functional import neuronwise_conv1d
        >>> x, weight = torch.ones(2, 3, 8), torch.ones(16, 3, 3)
        >>> neuronwise_conv1d(x, weight, stride=2, padding=1, gate="relu").shape
        torch.Size([2, 16, 4])
    """
    how = (stride, padding, dilation, groups)
    return _convolution(1, x, weight, bias, *how, gate, rule, process_group, statistics)


def neuronwise_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] | str = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
    *,
    gate: Gate,
    rule: Rule = Rule(),
    process_group: Any = None,
    statistics: Any = None,
) -> Any:
    """A 2-d convolution with the rule of `neuronwise_linear`.

    Forward (exact):      z = `torch.nn.functional.conv2d`
    Backward (modified):  g_x true; g_W and g_b as in `neuronwise_linear`, where a sample is an
                          image *and* a position, an input is a channel at a tap of the window, and
                          zero padding counts as samples of value 0 (the bias acts there too)

    All sums are kernel gradients of the convolution itself: no patches are ever laid out.

    Args:
        x: [N, C, *space] or [C, *space], any memory format.
        weight: [O, C / groups, *window].
        bias: [O] or None.
        stride: as in `torch.nn.functional.conv2d`, like the next three.
        padding: an int, one per dimension, ``"valid"`` or ``"same"``.
        dilation: of the window.
        groups: as many as channels is a depthwise convolution.
        gate: as in `neuronwise_linear`.
        rule: as in `neuronwise_linear`; `statistics_rows` counts whole images.
        process_group: as in `neuronwise_linear`.
        statistics: as in `neuronwise_linear`.

    Returns:
        z [N, O, *space']; with ``gate=DEFERRED`` (z, handle), see `tell_gate`.

    Raises:
        TypeError, ValueError: as `neuronwise_linear`, and for windows, strides, padding, groups
            that do not fit.

    Transformations, dtypes, numerics: as `neuronwise_linear`. Cost: two kernel-gradient products
    more, of which one at a time is in memory.

    Example:
        >>> import torch
        >>> from torchnorm.functional import neuronwise_conv2d
        >>> x, weight = torch.ones(2, 3, 8, 8), torch.ones(16, 3, 3, 3)
        >>> neuronwise_conv2d(x, weight, stride=2, padding=1, gate="relu").shape
        torch.Size([2, 16, 4, 4])

    References:
        As `neuronwise_linear`; convolutional BNP, Lange, Helfrich, Ye (2022), section 4, takes the
        statistics over images and positions alike.
    """
    how = (stride, padding, dilation, groups)
    return _convolution(2, x, weight, bias, *how, gate, rule, process_group, statistics)


def neuronwise_conv3d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] | str = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
    *,
    gate: Gate,
    rule: Rule = Rule(),
    process_group: Any = None,
    statistics: Any = None,
) -> Any:
    """A 3-d convolution with the rule of `neuronwise_linear`; all as in `neuronwise_conv2d`.

    Forward (exact):      z = `torch.nn.functional.conv3d`
    Backward (modified):  as `neuronwise_conv2d`

    Raises:
        TypeError, ValueError: as `neuronwise_conv2d`.

    Example:
        >>> import torch
        >>> from torchnorm.functional import neuronwise_conv3d
        >>> x, weight = torch.ones(2, 3, 8, 8, 8), torch.ones(16, 3, 3, 3, 3)
        >>> neuronwise_conv3d(x, weight, stride=2, padding=1, gate="relu").shape
        torch.Size([2, 16, 4, 4, 4])
    """
    how = (stride, padding, dilation, groups)
    return _convolution(3, x, weight, bias, *how, gate, rule, process_group, statistics)


def neuronwise_conv_transpose1d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] = 0,
    output_padding: int | tuple[int, ...] = 0,
    groups: int = 1,
    dilation: int | tuple[int, ...] = 1,
    *,
    gate: Gate,
    rule: Rule = Rule(),
    process_group: Any = None,
    statistics: Any = None,
) -> Any:
    """A 1-d transposed convolution; all as in `neuronwise_conv_transpose2d`.

    Forward (exact):      z = `torch.nn.functional.conv_transpose1d`
    Backward (modified):  as `neuronwise_conv_transpose2d`

    Raises:
        TypeError, ValueError: as `neuronwise_conv2d`.

    Example:
        >>> import torch
        >>> from torchnorm.functional import neuronwise_conv_transpose1d
        >>> x, weight = torch.ones(2, 3, 4), torch.ones(3, 16, 3)
        >>> neuronwise_conv_transpose1d(x, weight, stride=2, gate="relu").shape
        torch.Size([2, 16, 9])
    """
    how = (stride, padding, output_padding, groups, dilation)
    return _transposed(1, x, weight, bias, *how, gate, rule, process_group, statistics)


def neuronwise_conv_transpose2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] = 0,
    output_padding: int | tuple[int, ...] = 0,
    groups: int = 1,
    dilation: int | tuple[int, ...] = 1,
    *,
    gate: Gate,
    rule: Rule = Rule(),
    process_group: Any = None,
    statistics: Any = None,
) -> Any:
    """A 2-d transposed convolution with the rule of `neuronwise_linear`.

    Forward (exact):      z = `torch.nn.functional.conv_transpose2d`
    Backward (modified):  as `neuronwise_conv2d`; where a stride leaves a tap without an input, the
                          tap reads a sample of value 0, as it does in the padding

    Args:
        x: [N, C, *space] or [C, *space], any memory format.
        weight: [C, O / groups, *window].
        bias: [O] or None.
        stride: as in `torch.nn.functional.conv_transpose2d`, like the next four.
        padding: an int or one per dimension.
        output_padding: added behind.
        groups: into how many groups channels and outputs fall.
        dilation: of the window.
        gate: as in `neuronwise_conv2d`.
        rule: as in `neuronwise_conv2d`.
        process_group: as in `neuronwise_conv2d`.
        statistics: as in `neuronwise_conv2d`.

    Returns:
        z [N, O, *space']; with ``gate=DEFERRED`` (z, handle), see `tell_gate`.

    Raises:
        TypeError, ValueError: as `neuronwise_conv2d`.

    Transformations, dtypes, numerics, cost: as `neuronwise_conv2d`.

    Example:
        >>> import torch
        >>> from torchnorm.functional import neuronwise_conv_transpose2d
        >>> x, weight = torch.ones(2, 3, 4, 4), torch.ones(3, 16, 3, 3)
        >>> neuronwise_conv_transpose2d(x, weight, stride=2, gate="relu").shape
        torch.Size([2, 16, 9, 9])

    References:
        As `neuronwise_conv2d`.
    """
    how = (stride, padding, output_padding, groups, dilation)
    return _transposed(2, x, weight, bias, *how, gate, rule, process_group, statistics)


def neuronwise_conv_transpose3d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] = 0,
    output_padding: int | tuple[int, ...] = 0,
    groups: int = 1,
    dilation: int | tuple[int, ...] = 1,
    *,
    gate: Gate,
    rule: Rule = Rule(),
    process_group: Any = None,
    statistics: Any = None,
) -> Any:
    """A 3-d transposed convolution; all as in `neuronwise_conv_transpose2d`.

    Forward (exact):      z = `torch.nn.functional.conv_transpose3d`
    Backward (modified):  as `neuronwise_conv_transpose2d`

    Raises:
        TypeError, ValueError: as `neuronwise_conv2d`.

    Example:
        >>> import torch
        >>> from torchnorm.functional import neuronwise_conv_transpose3d
        >>> x, weight = torch.ones(2, 3, 4, 4, 4), torch.ones(3, 16, 3, 3, 3)
        >>> neuronwise_conv_transpose3d(x, weight, stride=2, gate="relu").shape
        torch.Size([2, 16, 9, 9, 9])
    """
    how = (stride, padding, output_padding, groups, dilation)
    return _transposed(3, x, weight, bias, *how, gate, rule, process_group, statistics)


def _convolution(
    rank, x, weight, bias, stride, padding, dilation, groups, gate, rule, process_group, statistics
):
    checks.check_floating(x=x, weight=weight, bias=bias)
    checks.check_window(weight.shape, rank)
    checks.check_images(x.shape, weight.shape, groups)
    stride = broadcast("stride", stride, rank, 1)
    dilation = broadcast("dilation", dilation, rank, 1)
    x, padding = pad(x, weight.shape[2:], stride, padding, dilation)
    operation = Convolution(
        groups, any(padding), rank, stride=stride, padding=padding, dilation=dilation
    )
    return _batched(operation, x, weight, bias, gate, rule, process_group, statistics)


def _transposed(
    rank,
    x,
    weight,
    bias,
    stride,
    padding,
    output_padding,
    groups,
    dilation,
    gate,
    rule,
    process_group,
    statistics,
):
    checks.check_floating(x=x, weight=weight, bias=bias)
    checks.check_window(weight.shape, rank)
    weight = swap_channels(weight, groups)
    checks.check_images(x.shape, weight.shape, groups)
    operation = TransposedConvolution(
        groups,
        padded=True,
        spatial_axes=rank,
        stride=broadcast("stride", stride, rank, 1),
        padding=broadcast("padding", padding, rank, 0),
        output_padding=broadcast("output_padding", output_padding, rank, 0),
        dilation=broadcast("dilation", dilation, rank, 1),
    )
    return _batched(operation, x, weight, bias, gate, rule, process_group, statistics)


def _batched(operation, x, weight, bias, gate, rule, process_group, statistics):
    """`linear_operation` for images with or without a batch axis."""
    single = x.ndim == operation.spatial_axes + 1
    out = linear_operation(
        operation,
        x[None] if single else x,
        weight,
        bias,
        gate=gate,
        rule=rule,
        process_group=process_group,
        statistics=statistics,
    )
    if not single:
        return out
    return tuple(z[0] for z in out) if isinstance(out, tuple) else out[0]
