"""The rule as functions: one for each operation of PyTorch."""

from typing import Any

import torch

from torchnorm import checks
from torchnorm.activations import Gate
from torchnorm.backward.deferred import tell_gate as tell_gate
from torchnorm.backward.linear_operation import linear_operation as linear_operation
from torchnorm.operations.convolution import (
    Convolution,
    TransposedConvolution,
    broadcast,
    pad,
    swap_channels,
)
from torchnorm.operations.linear import Dense
from torchnorm.rule import Rule


def neuronwise_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    gate: Gate,
    rule: Rule = Rule(),
    process_group: Any = None,
    statistics: Any = None,
) -> Any:
    """A dense layer whose weight gradient is taken in standardized coordinates, per neuron.

    Forward (exact):      z[..., o] = sum_i x[..., i] weight[o, i] + bias[o]
    Backward (modified):  g_x = g_z W                                    (the true one)
                          g_W <- (g_W - mean g_b) / sigma^2              (not the VJP)
                          g_b <- g_b - sum_i mean[:, i] g_W[:, i]        (with the new g_W)

    where mean and sigma [O, I] are the moments of each neuron's inputs over the samples on which it
    is active, weighted by the activation's derivative (see `Rule`, which also selects the other
    members of the family). Without a bias nothing can absorb a mean: then mean = 0 and sigma^2 is
    the second moment about zero. Nothing is remembered between calls.

    Args:
        x: [..., I], float16, bfloat16, float32 or float64; all leading axes are samples (N).
        weight: [O, I].
        bias: [O] or None.
        gate: the activation that follows: a name of `torch.nn`, an elementwise callable, or None if
            none follows. It is differentiated, not applied, and has no default, because a guess
            would silently be another method. With None the moments are the layer's own. A
            `JointGate` reads several neurons at once; with `DEFERRED` the activation is told later.
        rule: which moments and which form of the gradient. With ``gradient="plain"`` this is the
            plain layer, gradient and all, bit for bit.
        process_group: processes over which the batch is spread (`torch.distributed`); the
            statistics are then those of the whole batch. None: those of this process, as in DDP's
            BatchNorm.
        statistics: the layer's tracked statistics, {entry: tensor} (see
            `torchnorm.statistics.tracked`), whose gradient is the statistics of this batch; the
            other gradients are then the plain ones, for `torchnorm.optim.in_neuron_coordinates`.

    Returns:
        z [..., O], the dtype of `torch.nn.functional.linear`, under autocast too; with
        ``gate=DEFERRED`` (z, handle), see `tell_gate`.

    Raises:
        TypeError: for an x, weight or bias that is not floating-point, a gate or rule of another
            type.
        ValueError: for shapes that do not fit or an unknown gate; and, where the gradient is taken,
            for an empty batch or a single sample (its own mean: the weights would never learn).

    Numerics: statistics and the adapted gradient in at least float32, about a shift, so large
    means do not cancel (in float32 sigma^2 does lose digits for a neuron whose active samples lie
    hundreds of their standard deviations from the layer's mean). g_x, g_W, g_b have the dtype of
    x, weight, bias; g_W scales with 1 / x^2, so mind the range of float16. A neuron that is never
    active has the layer's moments; one whose moments are not finite (NaN or Inf in the batch, or
    |x| beyond about 1e18 in float32) has the plain gradient.

    Cost: at most two kernel-gradient products more, over `statistics_rows`; none in the forward
    pass, which keeps phi'(z) of these rows (a mask for ReLU, at least float32 otherwise).

    Transformations: autograd, torch.compile(fullgraph=True) with .backward(), autocast,
    torch.func.grad, checkpointing. Under torch.func.vmap each mapped example has its own
    statistics, over its own leading axes. Gradients summed over micro-batches are those of
    micro-batch statistics. With a frozen weight (requires_grad False) the bias has its plain
    gradient; a frozen bias cannot absorb a mean and counts as none. Forward mode (jvp, jacfwd)
    raises PyTorch's error; use ``gradient="plain"`` there. Second derivatives (create_graph) raise
    PyTorch's error too. torch.compile traces the backward pass too, so a compiled single
    row raises in the forward pass unless under torch.no_grad; torch.compile of a torch.func
    transform, which would drop every custom backward (pytorch#193279), runs uncompiled, or raises
    with fullgraph=True: compile the function that calls .backward() instead.

    Example:
        >>> import torch
        >>> from torchnorm import Rule
        >>> from torchnorm.functional import neuronwise_linear
        >>> x = torch.tensor([[10.0], [12.0], [11.0], [-5.0]])
        >>> def gradient(rule):
        ...     weight = torch.ones(1, 1, requires_grad=True)
        ...     bias = torch.zeros(1, requires_grad=True)
        ...     z = neuronwise_linear(x, weight, bias, gate="relu", rule=rule)
        ...     (z.relu() * torch.tensor([[1.0], [-1.0], [1.0], [1.0]])).sum().backward()
        ...     return round(weight.grad.item(), 4)
        >>> gradient(Rule(gradient="plain"))
        9.0
        >>> gradient(Rule(shrinkage=0.0, damping=0.0))  # (9 - 11 * 1) / (2 / 3)
        -3.0

    References:
        The thesis topic "Can We Improve BatchNorm? Neuron-wise Input Normalization for Neural
        Networks" (TU Munich); Lange, Helfrich, Ye, JMLR 23(72), 2022, arXiv 2108.01110 (uniform
        weights); Ollivier, arXiv 1303.0818 (error weights).
    """
    _check_floating(x, weight, bias)
    checks.check_matrix("weight", weight.shape, "[O, I]")
    checks.check_inputs(x.shape, weight.shape[1])
    return linear_operation(
        Dense(),
        x,
        weight,
        bias,
        gate=gate,
        rule=rule,
        process_group=process_group,
        statistics=statistics,
    )


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
    _check_floating(x, weight, bias)
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
    _check_floating(x, weight, bias)
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


def _check_floating(x, weight, bias):
    checks.check_floating("x", x)
    checks.check_floating("weight", weight)
    if bias is not None:
        checks.check_floating("bias", bias)
