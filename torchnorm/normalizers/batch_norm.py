"""BatchNorm of PyTorch in either framework's convention, over all processes where asked for.

PyTorch's function normalizes; here is only which statistics are stored, and of which processes:

    old' = (1 - m) old + m batch       m: momentum; 1 / k of the k-th batch if that is None
    var of the batch: times N / (N - 1) in PyTorch's convention, N values per channel

Source: the update is that of Ioffe and Szegedy, arXiv 1502.03167, section 3.1 and algorithm 2,
which stores the unbiased variance, as PyTorch does.
"""

from typing import Any, NamedTuple

import torch
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from torchnorm.normalizers import checks
from torchnorm.normalizers.all_reduce import all_reduce
from torchnorm.normalizers.conventions import (
    DEFAULT,
    Name,
    convention_of,
    epsilon_of,
    momentum_of,
)


class Knobs(NamedTuple):
    """The arguments of a module, with the convention's in place of those that were not given."""

    momentum: float | None
    eps: float
    unbiased: bool


def knobs_of(convention: Any, momentum: Any, eps: Any) -> Knobs:
    """What these arguments come to. Raises a ValueError for impossible ones."""
    defaults = convention_of(convention)
    return Knobs(
        momentum_of(momentum, defaults.momentum),
        epsilon_of(eps, defaults.batch_epsilon),
        defaults.unbiased,
    )


def stored_variance(var: torch.Tensor, count: Any, *, unbiased: bool) -> torch.Tensor:
    """The variance of a batch as it is stored; that of a single value stays 0."""
    if not unbiased:
        return var
    return var * (count / max(count - 1, 1))


def moments_of_group(
    x: torch.Tensor, process_group: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(N, mean, variance) per channel, x [N, C, *], over all processes; a gradient flows through.

    In float32 at least, the variance about the mean. Processes may have different numbers of rows.
    """
    summed = [a for a in range(x.ndim) if a != 1]
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    count = x.new_tensor([x.numel() // x.shape[1]])
    total = all_reduce(torch.cat([x.sum(summed), count]), process_group)
    count, mean = total[-1].detach(), total[:-1] / total[-1].detach()
    centered = x - mean.reshape(-1, *(1,) * (x.ndim - 2))
    return count, mean, all_reduce(centered.square().sum(summed), process_group) / count


class BatchNorm(_BatchNorm):
    """`torch.nn.BatchNorm1d` to ``3d`` in PyTorch's convention or in Flax's. As `BatchNorm`.

    The text is that of `jaxnorm.linen.normalizers.BatchNorm`: equations, placement, numerics. What
    differs is what differs in PyTorch: the channels are dimension 1 of [N, C, *] of any rank, the
    momentum is the weight of the NEW statistics, ``module.train()`` and ``module.eval()`` say what
    is done, ``affine`` is for weight and bias, and

    ==============================  ===========================  ==========================
    default                         ``convention="torch"``       ``convention="flax"``
    ==============================  ===========================  ==========================
    momentum                        0.1                          0.01
    what is stored of the variance  times N / (N - 1)            as it is
    eps                             1e-5                         1e-5
    ==============================  ===========================  ==========================

    Parameters and buffers are those of `torch.nn.BatchNorm2d`, under its names. With
    `process_group` this is `torch.nn.SyncBatchNorm`, which refuses the CPU, on any device and with
    any backend: in training every process has the statistics of the rows of all, of which the
    processes may have different numbers, and gradients flow through them. In
    `DistributedDataParallel`, which averages, give each process its mean loss (if all have as many
    rows), and weights are those of one process with the whole batch.
    `SyncBatchNorm.convert_sync_batchnorm` would put PyTorch's convention in place of Flax's.

    Before or after the activation: `convert` finds it behind ``Linear -> BatchNorm -> ReLU`` and
    behind ``Linear -> ReLU -> BatchNorm``, as for PyTorch's own.

    Args:
        num_features: the number of channels.
        eps: what is added to the variance, in the units of x squared. Default: the convention's.
        momentum: weight of the NEW statistics, from 0 to 1. None: the average over all batches.
            Default: the convention's.
        affine: whether there are ``weight`` and ``bias``; default True.
        track_running_stats: default True. False: evaluation normalizes by the batch, too.
        device: of parameters and buffers.
        dtype: of parameters and buffers.
        convention: (keyword) "torch" (default) or "flax".
        process_group: (keyword) the processes over which the batch is spread, such as
            ``torch.distributed.group.WORLD``; None (default): this one alone.

    Raises:
        ValueError: for an unknown convention, a momentum or eps that is no such number, fewer than
            two axes, another number of channels, and, in training, one value per channel.

    Transformations: autograd to any order, `torch.func`, `torch.compile`; in training with
    `track_running_stats` not `torch.vmap`, as PyTorch's.

    Example:
        >>> import torch
        >>> import torchnorm
        >>> layer = torchnorm.normalizers.BatchNorm(2, convention="flax")
        >>> y = layer(torch.tensor([[0.0, 2.0], [2.0, 6.0]]))
        >>> layer.running_var
        tensor([1.0000, 1.0300])

    References:
        Ioffe and Szegedy, arXiv 1502.03167, algorithms 1 and 2; the conventions are measured.
    """

    def __init__(
        self,
        num_features: int,
        eps: Any = DEFAULT,
        momentum: Any = DEFAULT,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        convention: Name = "torch",
        process_group: Any = None,
    ) -> None:
        knobs = knobs_of(convention, momentum, eps)
        super().__init__(
            num_features, knobs.eps, knobs.momentum, affine, track_running_stats, device, dtype
        )
        self.convention, self.unbiased = convention, knobs.unbiased
        self.process_group = process_group

    def _check_input_dim(self, input: torch.Tensor) -> None:
        checks.check_rank(input.shape)
        checks.check_channels(input.shape, 1, self.num_features)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalize the input."""
        self._check_input_dim(input)
        if not self.training and self.track_running_stats:
            return super().forward(input)
        if self.process_group is not None:
            return self._over_processes(input)
        values = input.numel() // self.num_features
        checks.check_values(input.shape, values)
        if self.unbiased or not self.track_running_stats:
            return super().forward(input)
        # With momentum 1 PyTorch stores the batch's own statistics.
        running = self.running_mean
        assert running is not None
        mean, var = torch.zeros_like(running), torch.zeros_like(running)
        y = F.batch_norm(input, mean, var, self.weight, self.bias, True, 1.0, self.eps)
        self._store(mean, var * ((values - 1) / values))
        return y

    def _over_processes(self, input: torch.Tensor) -> torch.Tensor:
        count, mean, var = moments_of_group(input, self.process_group)
        values = int(count)
        checks.check_values(input.shape, values)
        if self.training and self.track_running_stats:
            stored = stored_variance(var.detach(), values, unbiased=self.unbiased)
            self._store(mean.detach(), stored)
        shape = (-1, *(1,) * (input.ndim - 2))
        y = (input - mean.reshape(shape)) * torch.rsqrt(var + self.eps).reshape(shape)
        if self.weight is not None:
            y = y * self.weight.reshape(shape)
        if self.bias is not None:
            y = y + self.bias.reshape(shape)
        return y.to(input.dtype)

    @torch.no_grad()
    def _store(self, mean: torch.Tensor, var: torch.Tensor) -> None:
        """Average the statistics of a batch with those before it."""
        counter = self.num_batches_tracked
        assert counter is not None
        counter.add_(1)
        share = 1.0 / float(counter) if self.momentum is None else self.momentum
        for running, batch in ((self.running_mean, mean), (self.running_var, var)):
            assert running is not None
            running.mul_(1 - share).add_(batch.to(running.dtype) * share)

    def extra_repr(self) -> str:
        """PyTorch's, and the convention."""
        return f"{super().extra_repr()}, convention={self.convention!r}"
