"""Operations that are linear in their kernel, and their kernel gradient on any pair of tensors."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from torchnorm.operations.rows import spaced, spaced_among


@dataclass(frozen=True)
class LinearOperation:
    """``z = apply(x, weight, bias)``, linear in the weight; channels where PyTorch has them.

    The statistics need nothing else of an operation: a weighted sum over the samples *is* its
    kernel gradient, with the sample weight in place of the gradient at z.

    Attributes:
        groups: into how many groups the channels and outputs fall.
        padded: whether apply pads x with zeros, which then count as samples of value 0.
        spatial_axes: how many axes of x behind the channels are positions.
    """

    groups: int = 1
    padded: bool = False
    spatial_axes: int = 0

    def apply(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """PyTorch's forward pass: x [..., C], weight [O, C / groups] -> z [..., O]."""
        raise NotImplementedError

    def apply_detached(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """`apply` to the last bit, but no gradient flows to weight and bias."""
        return self.apply(x, weight.detach(), None if bias is None else bias.detach())

    def channel_axis(self, x: torch.Tensor) -> int:
        """The axis of the channels of x, or of the outputs of z."""
        return x.ndim - 1 - self.spatial_axes

    def sample_axes(self, x: torch.Tensor) -> list[int]:
        """All the other axes."""
        return [axis for axis in range(x.ndim) if axis != self.channel_axis(x)]

    def samples(self, z: torch.Tensor) -> int:
        """How many samples z holds (for a convolution: positions)."""
        axis = self.channel_axis(z)
        return math.prod(z.shape[:axis]) * math.prod(z.shape[axis + 1 :])

    def kernel_grad(self, x: torch.Tensor, weight: torch.Tensor, g_z: torch.Tensor) -> torch.Tensor:
        """The kernel gradient for inputs x and gradient g_z at z; only weight's shape matters."""
        raise NotImplementedError

    def bias_grad(self, g_z: torch.Tensor) -> torch.Tensor:
        """The sum over samples [O]."""
        return g_z.sum(self.sample_axes(g_z)) if g_z.ndim > 1 else g_z

    def sample_shape(self, z: torch.Tensor) -> tuple[int, ...]:
        """The axes of the samples of z, or of x."""
        axis = self.channel_axis(z)
        return (*z.shape[:axis], *z.shape[axis + 1 :])

    def spaced_rows(
        self, x: torch.Tensor, rows: int | None, counts: torch.Tensor | None = None
    ) -> torch.Tensor:
        """At least so many rows (samples; whole images of a convolution), all over the batch.

        Cut once more, they stay as they are.

        Args:
            x: any tensor with the axes of the samples and that of the channels; several axes of the
                batch count as one.
            rows: how many; None for all.
            counts: how often each sample counts, as x, then exactly so many of those that do; None
                if all do.
        """
        axis = self.channel_axis(x)
        batch = math.prod(x.shape[:axis])
        if rows is None or rows >= batch:
            return x
        x = x.reshape(batch, *x.shape[axis:])
        if counts is None:
            return spaced(x, rows)
        counted = counts.reshape(batch, -1).amax(1) > 0
        return x[spaced_among(counted, rows)]

    def one_image(self, x: torch.Tensor) -> torch.Tensor:
        """The sum over the batch, as one image; x itself where nothing is known of positions."""
        return x.sum(0, keepdim=True) if self.spatial_axes else x

    def over_samples(self, values: torch.Tensor) -> torch.Tensor:
        """Per-channel values [C] with the axes of x behind the batch."""
        return values.reshape(-1, *[1] * self.spatial_axes)

    def per_neuron(self, values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Per-neuron values [O] with the axes of the weight."""
        return values.reshape(-1, *[1] * (weight.ndim - 1))

    def per_output(self, values: torch.Tensor, outputs: int) -> torch.Tensor:
        """Repeat per-group values [groups, ...] so that they broadcast against [outputs, ...]."""
        return values if self.groups == 1 else values.repeat_interleave(outputs // self.groups, 0)

    def per_tap(self, channels: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Per-channel values [C] with the axes of the weight."""
        taps = [1] * (weight.ndim - 2)
        inputs = channels.numel() // self.groups
        return self.per_output(channels.reshape(self.groups, inputs, *taps), weight.shape[0])


@dataclass(frozen=True)
class Dense(LinearOperation):
    """``z[..., o] = sum_i x[..., i] weight[o, i] + bias[o]``."""

    def apply(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """`torch.nn.functional.linear`."""
        return F.linear(x, weight, bias)

    def apply_detached(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """`apply` to the last bit, but no gradient flows to weight and bias."""
        if x.ndim < 3 or x.is_contiguous() or not weight.requires_grad:
            return super().apply_detached(x, weight, bias)
        # Where a weight needs a gradient, PyTorch folds the leading axes of such an x; else not.
        z = x.reshape(-1, x.shape[-1]) @ weight.detach().T
        z = z.view(*x.shape[:-1], weight.shape[0])
        return z if bias is None else z + bias.detach()

    def kernel_grad(self, x: torch.Tensor, weight: torch.Tensor, g_z: torch.Tensor) -> torch.Tensor:
        """g_z^T x."""
        samples = self.samples(x)
        g_z, x = g_z.reshape(samples, g_z.shape[-1]), x.reshape(samples, x.shape[-1])
        return g_z.T @ x
