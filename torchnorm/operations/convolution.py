"""Convolutions and transposed convolutions, channels behind the batch, with PyTorch's padding."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from torchnorm.operations.linear import LinearOperation

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_convolution_backward = torch.ops.aten.convolution_backward.default


@dataclass(frozen=True)
class Convolution(LinearOperation):
    """`torch.nn.functional.conv1d` to `conv3d`; weight [O, C / groups, *window]."""

    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()

    def apply(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """PyTorch's forward pass."""
        conv = _CONV[self.spatial_axes]
        return conv(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def kernel_grad(self, x: torch.Tensor, weight: torch.Tensor, g_z: torch.Tensor) -> torch.Tensor:
        """PyTorch's kernel gradient."""
        shape = (g_z.shape[1], x.shape[1] // self.groups, *weight.shape[2:])
        transposed = False, (0,) * self.spatial_axes
        return _kernel_grad(x, weight.new_empty(shape), g_z, self, *transposed)


@dataclass(frozen=True)
class TransposedConvolution(LinearOperation):
    """`torch.nn.functional.conv_transpose1d` to `3d`; weight [O, C / groups, *window].

    Between two inputs there are zeros (as many as the stride leaves out), and each tap reads its
    share of them: they are samples of value 0, as padding is.
    """

    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    output_padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()

    def apply(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """PyTorch's forward pass."""
        return _CONV_TRANSPOSE[self.spatial_axes](
            x,
            swap_channels(weight, self.groups),
            bias,
            self.stride,
            self.padding,
            self.output_padding,
            self.groups,
            self.dilation,
        )

    def kernel_grad(self, x: torch.Tensor, weight: torch.Tensor, g_z: torch.Tensor) -> torch.Tensor:
        """PyTorch's kernel gradient."""
        shape = (x.shape[1], g_z.shape[1] // self.groups, *weight.shape[2:])
        transposed = True, self.output_padding
        gradient = _kernel_grad(x, weight.new_empty(shape), g_z, self, *transposed)
        return swap_channels(gradient, self.groups)


def _kernel_grad(x, weight, g_z, operation, transposed, output_padding):
    dtype = torch.promote_types(x.dtype, g_z.dtype)
    arrays = (a.to(dtype) for a in (g_z, x, weight))
    window = operation.stride, operation.padding, operation.dilation
    rest = transposed, output_padding, operation.groups, [False, True, False]
    return _convolution_backward(*arrays, None, *window, *rest)[1]


def swap_channels(weight: torch.Tensor, groups: int) -> torch.Tensor:
    """[C, O / groups, ...] as [O, C / groups, ...], group by group, and back: its own inverse."""
    window = weight.shape[2:]
    if groups == 1:
        return weight.transpose(0, 1)
    weight = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], *window)
    weight = weight.transpose(1, 2)
    return weight.reshape(groups * weight.shape[1], weight.shape[2], *window)


def broadcast(name: str, value: Any, rank: int, least: int) -> tuple[int, ...]:
    """One int per spatial axis."""
    values = (value,) * rank if isinstance(value, int) else tuple(value)
    if len(values) == 1:
        values *= rank
    if len(values) != rank or min(values) < least:
        raise ValueError(
            f"{name}: got {value!r}, expected an int >= {least} or one for each of {rank} spatial "
            "axes"
        )
    return values


def pad(
    x: torch.Tensor,
    window: Sequence[int],
    stride: tuple[int, ...],
    padding: Any,
    dilation: tuple[int, ...],
) -> tuple[torch.Tensor, tuple[int, ...]]:
    """(x, padding): PyTorch's padding as one int per axis; what is not even-handed laid round x."""
    rank = len(window)
    if not isinstance(padding, str):
        return x, broadcast("padding", padding, rank, 0)
    if padding == "valid":
        return x, (0,) * rank
    if padding != "same":
        raise ValueError(
            f"padding: got {padding!r}, expected 'same', 'valid', an int or one for each of {rank} "
            "spatial axes"
        )
    if max(stride) > 1:
        raise ValueError(f"padding: got 'same' with stride {stride}, expected stride 1")
    total = [(k - 1) * d for k, d in zip(window, dilation, strict=True)]
    # As PyTorch: the odd one lies behind.
    extra = [t % 2 for t in total]
    if any(extra):
        x = F.pad(x, [n for e in reversed(extra) for n in (0, e)])
    return x, tuple(t // 2 for t in total)
