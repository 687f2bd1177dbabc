"""InstanceNorm of PyTorch in either framework's convention."""

import math
from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.modules.instancenorm import _InstanceNorm

from torchnorm.normalizers import checks
from torchnorm.normalizers.conventions import (
    DEFAULT,
    Name,
    convention_of,
    epsilon_of,
    momentum_of,
)


class InstanceNorm(_InstanceNorm):
    """`torch.nn.InstanceNorm1d` to ``3d`` with the defaults of PyTorch or of Flax.

    The text is that of `jaxnorm.linen.normalizers.InstanceNorm`; here the channels are dimension 1
    of [N, C, *space] of any rank, momentum is the weight of the NEW statistics, and a batch is
    needed. On the CPU PyTorch's input gradient for a batch of one is wrong where the cotangent lies
    in memory as ``torch.channels_last``; here it is right (space is flat when PyTorch sees it).

    Args:
        num_features: the number of channels.
        eps: what is added to the variance, in the units of x squared. Default: the convention's.
        momentum: weight of the NEW statistics, if they are tracked. Default: the convention's.
        affine: whether there are ``weight`` and ``bias``. Default: the convention's.
        track_running_stats: default False.
        device: of parameters and buffers.
        dtype: of parameters and buffers.
        convention: (keyword) "torch" (default) or "flax".

    Raises:
        ValueError: for an unknown convention, numbers that are none, fewer than three axes,
            another number of channels, and a single position.

    Example:
        >>> import torch
        >>> import torchnorm
        >>> layer = torchnorm.normalizers.InstanceNorm(1, convention="flax")
        >>> layer(torch.tensor([[[0.0, 2.0]], [[5.0, 9.0]]]))[:, 0].detach()
        tensor([[-1.0000,  1.0000],
                [-1.0000,  1.0000]])
    """

    def __init__(
        self,
        num_features: int,
        eps: Any = DEFAULT,
        momentum: Any = DEFAULT,
        affine: Any = DEFAULT,
        track_running_stats: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        convention: Name = "torch",
    ) -> None:
        defaults = convention_of(convention)
        share: Any = momentum_of(momentum, defaults.momentum, average=False)
        super().__init__(
            num_features,
            epsilon_of(eps, defaults.epsilon),
            share,
            defaults.instance_affine if affine == DEFAULT else affine,
            track_running_stats,
            device,
            dtype,
        )
        self.convention, self.unbiased = convention, defaults.unbiased

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalize the input."""
        checks.check_rank(input.shape, 3)
        checks.check_channels(input.shape, 1, self.num_features)
        instances = self.training or not self.track_running_stats
        positions = math.prod(input.shape[2:])
        if instances:
            checks.check_values(input.shape, positions, "channel of a sample", "a larger image")
        mean, var, momentum = self.running_mean, self.running_var, self.momentum
        apart = instances and self.track_running_stats and not self.unbiased
        if apart:  # with momentum 1 PyTorch stores the batch's own statistics
            assert mean is not None
            assert var is not None
            mean, var, momentum = torch.zeros_like(mean), torch.zeros_like(var), 1.0
        # For a batch of one PyTorch's gradient of images is wrong on the CPU where the cotangent
        # lies as torch.channels_last; that of flat space never does.
        flat, share = input.flatten(2), momentum or 0.0
        y = F.instance_norm(flat, mean, var, self.weight, self.bias, instances, share, self.eps)
        if apart:
            self._store(mean, var, (positions - 1) / positions)
        return y.view(input.shape)

    @torch.no_grad()
    def _store(self, mean: Any, var: Any, biased: float) -> None:
        """Average the statistics of a batch with those before it."""
        share: Any = self.momentum
        for running, batch in ((self.running_mean, mean), (self.running_var, var * biased)):
            assert running is not None
            running.mul_(1 - share).add_(batch * share)
