"""`Conv1d` to `ConvTranspose3d`, with the rule in their backward pass."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from torchnorm.functional import (
    neuronwise_conv1d,
    neuronwise_conv2d,
    neuronwise_conv3d,
    neuronwise_conv_transpose1d,
    neuronwise_conv_transpose2d,
    neuronwise_conv_transpose3d,
)
from torchnorm.modules.base import Neuronwise
from torchnorm.operations.convolution import swap_channels


class _Convolution(Neuronwise, nn.modules.conv._ConvNd):
    function: Any

    def _conv_forward(self, input: torch.Tensor, weight: torch.Tensor, bias: Any) -> Any:
        # (What does not fit is left to the function, which says so.)
        if self.is_plain() and input.ndim == weight.ndim and input.is_floating_point():
            if input.shape[1] == self.in_channels:
                return super()._conv_forward(input, weight, bias)  # type: ignore[misc]
        padding = self.padding
        if self.padding_mode != "zeros":
            # Real samples, not zeros: laid round x as PyTorch does.
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        geometry = (self.stride, padding, self.dilation, self.groups)
        return self.function(input, weight, bias, *geometry, **self.settings())


class Conv1d(_Convolution, nn.Conv1d):
    """`torch.nn.Conv1d` with the neuron-wise rule. As `Conv2d`, for [N, C, L].

    Example:
        >>> import torch, torchnorm
        >>> layer = torchnorm.Conv1d(3, 16, 3, stride=2, padding=1, gate="relu")
        >>> layer(torch.ones(2, 3, 8)).shape
        torch.Size([2, 16, 4])
    """

    function = staticmethod(neuronwise_conv1d)


class Conv2d(_Convolution, nn.Conv2d):
    """`torch.nn.Conv2d` with the neuron-wise rule. As `Linear`, for [N, C, H, W].

    Forward (exact):      z [N, O, H', W'], PyTorch's to the last bit
    Backward (modified):  a sample is an image and a position, and `statistics_rows` counts whole
                          images; see `torchnorm.functional.neuronwise_conv2d`

    Example:
        >>> import torch, torchnorm
        >>> layer = torchnorm.Conv2d(3, 16, 3, stride=2, padding=1, gate="relu")
        >>> layer(torch.ones(2, 3, 8, 8)).shape
        torch.Size([2, 16, 4, 4])
    """

    function = staticmethod(neuronwise_conv2d)


class Conv3d(_Convolution, nn.Conv3d):
    """`torch.nn.Conv3d` with the neuron-wise rule. As `Conv2d`, for [N, C, D, H, W].

    Example:
        >>> import torch, torchnorm
        >>> layer = torchnorm.Conv3d(3, 16, 3, stride=2, padding=1, gate="relu")
        >>> layer(torch.ones(2, 3, 8, 8, 8)).shape
        torch.Size([2, 16, 4, 4, 4])
    """

    function = staticmethod(neuronwise_conv3d)


class _TransposedConvolution(Neuronwise, nn.modules.conv._ConvTransposeNd):
    function: Any

    def neurons_first(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight as [O, C / groups, ...], and back."""
        return swap_channels(weight, self.groups)

    def forward(self, input: torch.Tensor, output_size: list[int] | None = None) -> Any:
        """Apply the layer to input [N, C, *space]; returns z [N, O, *space']."""
        if self.padding_mode != "zeros":
            raise ValueError(f"padding_mode: got {self.padding_mode!r}, expected 'zeros'")
        rank = len(self.kernel_size)
        window: Any = (self.stride, self.padding, self.kernel_size, rank, self.dilation)
        output_padding = self._output_padding(input, output_size, *window)
        geometry = (self.stride, self.padding, output_padding, self.groups, self.dilation)
        return self.function(input, self.weight, self.bias, *geometry, **self.settings())


class ConvTranspose1d(_TransposedConvolution, nn.ConvTranspose1d):
    """`torch.nn.ConvTranspose1d` with the neuron-wise rule. As `ConvTranspose2d`, for [N, C, L].

    Example:
        >>> import torch, torchnorm
        >>> layer = torchnorm.ConvTranspose1d(3, 16, 2, stride=2, gate="relu")
        >>> layer(torch.ones(2, 3, 4)).shape
        torch.Size([2, 16, 8])
    """

    function = staticmethod(neuronwise_conv_transpose1d)


class ConvTranspose2d(_TransposedConvolution, nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d` with the neuron-wise rule. As `Conv2d`, the other way round.

    Forward (exact):      z [N, O, H', W'], PyTorch's to the last bit
    Backward (modified):  see `torchnorm.functional.neuronwise_conv_transpose2d`

    Example:
        >>> import torch, torchnorm
        >>> layer = torchnorm.ConvTranspose2d(3, 16, 2, stride=2, gate="relu")
        >>> layer(torch.ones(2, 3, 4, 4)).shape
        torch.Size([2, 16, 8, 8])
    """

    function = staticmethod(neuronwise_conv_transpose2d)


class ConvTranspose3d(_TransposedConvolution, nn.ConvTranspose3d):
    """`torch.nn.ConvTranspose3d` with the neuron-wise rule. As `ConvTranspose2d`, for 3-d images.

    Example:
        >>> import torch, torchnorm
        >>> layer = torchnorm.ConvTranspose3d(3, 16, 2, stride=2, gate="relu")
        >>> layer(torch.ones(2, 3, 4, 4, 4)).shape
        torch.Size([2, 16, 8, 8, 8])
    """

    function = staticmethod(neuronwise_conv_transpose3d)
