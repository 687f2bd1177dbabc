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
    neuron_mask: Any = None,
) -> Any:
    """`torch.nn.functional.conv1d` with the rule. As `neuronwise_conv2d`, for [N, C, L].

    Example:
        >>> import torch
        >>> from torchnorm.functional import neuronwise_conv1d
        >>> x, weight = torch.ones(2, 3, 8), torch.ones(16, 3, 3)
        >>> neuronwise_conv1d(x, weight, stride=2, padding=1, gate="relu").shape
        torch.Size([2, 16, 4])
    """
    geometry = (stride, padding, dilation, groups)
    settings = (gate, rule, process_group, statistics, neuron_mask)
    return _convolution(1, x, weight, bias, geometry, *settings)


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
    neuron_mask: Any = None,
) -> Any:
    """`torch.nn.functional.conv2d` with the rule. As `neuronwise_linear`, for images.

    Forward (exact):      PyTorch's, to the last bit
    Backward (modified):  as `neuronwise_linear`, where a sample is an image *and* a position, an
                          input is a channel at a tap of the window, and zero padding counts as
                          samples of value 0 (the bias acts there too)

    All sums are kernel gradients of the convolution itself: no patches are ever laid out.

    Args:
        x: [N, C, H, W] or [C, H, W], any memory format.
        weight: [O, C / groups, *window].
        bias: [O] or None.
        stride: as in `torch.nn.functional.conv2d`, like the next three.
        padding: an int, one per dimension, ``"valid"`` or ``"same"``.
        dilation: of the window.
        groups: as many as channels is a depthwise convolution.
        gate: as in `neuronwise_linear`, like the next three.
        rule: `statistics_rows` counts whole images.
        process_group: over which the batch is spread.
        statistics: the layer's tracked ones.
        neuron_mask: as in `neuronwise_linear`; of the images, or of the positions of z too.

    Returns:
        z [N, O, H', W']; with ``gate=DEFERRED`` (z, handle), see `tell_gate`.

    Raises:
        TypeError, ValueError: as `neuronwise_linear`, and for windows, strides, padding, groups
            that do not fit.

    Cost: two kernel-gradient products more, of which one at a time is in memory.

    Example:
        >>> import torch
        >>> from torchnorm.functional import neuronwise_conv2d
        >>> x, weight = torch.ones(2, 3, 8, 8), torch.ones(16, 3, 3, 3)
        >>> neuronwise_conv2d(x, weight, stride=2, padding=1, gate="relu").shape
        torch.Size([2, 16, 4, 4])

    References:
        Convolutional BNP, Lange, Helfrich, Ye (2022), section 4, takes the statistics over images
        and positions alike.
    """
    geometry = (stride, padding, dilation, groups)
    settings = (gate, rule, process_group, statistics, neuron_mask)
    return _convolution(2, x, weight, bias, geometry, *settings)


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
    neuron_mask: Any = None,
) -> Any:
    """`torch.nn.functional.conv3d` with the rule. As `neuronwise_conv2d`, for [N, C, D, H, W].

    Example:
        >>> import torch
        >>> from torchnorm.functional import neuronwise_conv3d
        >>> x, weight = torch.ones(2, 3, 8, 8, 8), torch.ones(16, 3, 3, 3, 3)
        >>> neuronwise_conv3d(x, weight, stride=2, padding=1, gate="relu").shape
        torch.Size([2, 16, 4, 4, 4])
    """
    geometry = (stride, padding, dilation, groups)
    settings = (gate, rule, process_group, statistics, neuron_mask)
    return _convolution(3, x, weight, bias, geometry, *settings)


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
    neuron_mask: Any = None,
) -> Any:
    """`torch.nn.functional.conv_transpose1d` with the rule.

    As `neuronwise_conv_transpose2d`, for [N, C, L].

    Example:
        >>> import torch
        >>> from torchnorm.functional import neuronwise_conv_transpose1d
        >>> x, weight = torch.ones(2, 3, 4), torch.ones(3, 16, 3)
        >>> neuronwise_conv_transpose1d(x, weight, stride=2, gate="relu").shape
        torch.Size([2, 16, 9])
    """
    geometry = (stride, padding, output_padding, groups, dilation)
    settings = (gate, rule, process_group, statistics, neuron_mask)
    return _transposed(1, x, weight, bias, geometry, *settings)


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
    neuron_mask: Any = None,
) -> Any:
    """`torch.nn.functional.conv_transpose2d` with the rule. As `neuronwise_conv2d`.

    Forward (exact):      PyTorch's, to the last bit
    Backward (modified):  as `neuronwise_conv2d`; where a stride leaves a tap without an input, the
                          tap reads a sample of value 0, as it does in the padding

    The weight is [C, O / groups, *window]; padding and `output_padding` are an int or one per
    dimension.

    Example:
        >>> import torch
        >>> from torchnorm.functional import neuronwise_conv_transpose2d
        >>> x, weight = torch.ones(2, 3, 4, 4), torch.ones(3, 16, 3, 3)
        >>> neuronwise_conv_transpose2d(x, weight, stride=2, gate="relu").shape
        torch.Size([2, 16, 9, 9])
    """
    geometry = (stride, padding, output_padding, groups, dilation)
    settings = (gate, rule, process_group, statistics, neuron_mask)
    return _transposed(2, x, weight, bias, geometry, *settings)


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
    neuron_mask: Any = None,
) -> Any:
    """`torch.nn.functional.conv_transpose3d` with the rule.

    As `neuronwise_conv_transpose2d`, for [N, C, D, H, W].

    Example:
        >>> import torch
        >>> from torchnorm.functional import neuronwise_conv_transpose3d
        >>> x, weight = torch.ones(2, 3, 4, 4, 4), torch.ones(3, 16, 3, 3, 3)
        >>> neuronwise_conv_transpose3d(x, weight, stride=2, gate="relu").shape
        torch.Size([2, 16, 9, 9, 9])
    """
    geometry = (stride, padding, output_padding, groups, dilation)
    settings = (gate, rule, process_group, statistics, neuron_mask)
    return _transposed(3, x, weight, bias, geometry, *settings)


def _convolution(rank, x, weight, bias, geometry, *settings):
    stride, padding, dilation, groups = geometry
    checks.check_floating(x=x, weight=weight, bias=bias)
    checks.check_window(weight.shape, rank)
    checks.check_images(x.shape, weight.shape, groups)
    stride = broadcast("stride", stride, rank, 1)
    dilation = broadcast("dilation", dilation, rank, 1)
    x, padding = pad(x, weight.shape[2:], stride, padding, dilation)
    operation = Convolution(
        groups, any(padding), rank, stride=stride, padding=padding, dilation=dilation
    )
    return _batched(operation, x, weight, bias, *settings)


def _transposed(rank, x, weight, bias, geometry, *settings):
    stride, padding, output_padding, groups, dilation = geometry
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
    return _batched(operation, x, weight, bias, *settings)


def _batched(operation, x, weight, bias, gate, rule, process_group, statistics, neuron_mask):
    """`linear_operation` for images with or without a batch axis."""
    single = x.ndim == operation.spatial_axes + 1
    if single and neuron_mask is not None:
        there = isinstance(neuron_mask, torch.Tensor)
        neuron_mask = (neuron_mask if there else torch.as_tensor(neuron_mask))[None]
    out = linear_operation(
        operation,
        x[None] if single else x,
        weight,
        bias,
        gate=gate,
        rule=rule,
        process_group=process_group,
        statistics=statistics,
        neuron_mask=neuron_mask,
    )
    if not single:
        return out
    return tuple(z[0] for z in out) if isinstance(out, tuple) else out[0]
