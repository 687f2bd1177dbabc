"""What normalizers of channels share: moments of x [N, C, *space], sums, running averages."""

import math
from collections.abc import Callable
from typing import Any

import torch

from torchnorm.checks import check_floating
from torchnorm.normalizers.all_reduce import all_reduce
from torchnorm.normalizers.checks import check_channels, check_rank

#: Added to sums of weights: far below any that matters, and not 0 in float32.
TINY = 1e-30

#: A local mean -> that over all processes.
Over = Callable[[torch.Tensor], torch.Tensor]


def computed(x: torch.Tensor) -> torch.Tensor:
    """The same in the dtype in which its statistics are computed: float32 or wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def along(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Values [..., C] as they stand beside x [N, C, *space]."""
    return values.to(x.dtype).reshape(*values.shape, *(1,) * (x.ndim - 2))


def moments(
    x: torch.Tensor, process_group: Any = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean and variance (biased), [1, C, 1...], of each channel, and x without the mean.

    Args:
        x: [N, C, *space].
        process_group: the processes over which the batch is spread, or None.
    """
    dims, over = (0, *range(2, x.ndim)), over_processes(x, process_group)
    mean, centered = centered_over(x, dims, over)
    return mean, over(centered.square().mean(dims, keepdim=True)), centered


def space_moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean and variance (biased), [N, C, 1...], of each sample's channels, and x without the mean.

    Without space the mean is x and the variance 0.
    """
    dims = tuple(range(2, x.ndim))
    if not dims:  # which PyTorch takes for all
        return x, torch.zeros_like(x), torch.zeros_like(x)
    mean, centered = centered_over(x, dims)
    return mean, centered.square().mean(dims, keepdim=True), centered


def centered_over(
    x: torch.Tensor, dims: tuple[int, ...], over: Over = lambda mean: mean
) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean over dimensions, which stay, and x without it; `over` takes it over processes, too.

    The first value stands in for the mean at first: so nothing of x is lost in a large mean, and
    what is constant is 0.
    """
    first = x[tuple(slice(0, 1) if dim in dims else slice(None) for dim in range(x.ndim))]
    if not x.numel():  # a process without rows joins with those that have some
        first = x.new_zeros([1 if dim in dims else size for dim, size in enumerate(x.shape)])
    shift = over(first.detach())
    x = x - shift
    mean = over(x.mean(dims, keepdim=True))
    return shift + mean, x - mean


def weighted_moments(
    deviation: torch.Tensor, weight: torch.Tensor, over: Over
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The mean weight, and mean and variance [C] of each channel under weights [N, *space or 1].

    Args:
        deviation: [N, C, *space], x without its mean, so that a large one costs no digits.
        weight: not negative.
        over: see `over_processes`.
    """
    dims, each = (0, *range(2, deviation.ndim)), weight[:, None]
    mass = over(weight.mean())
    mean = over((each * deviation).mean(dims)) / (mass + TINY)
    square = over((each * (deviation - along(mean, deviation)).square()).mean(dims))
    return mass, mean, square / (mass + TINY)


def over_processes(x: torch.Tensor, process_group: Any) -> Over:
    """A mean over processes, by how much of x [N, C, *space] each has; or None of that.

    A gradient flows through.
    """
    if process_group is None:
        return lambda mean: mean
    local = x.new_tensor(count(x))
    share = local / all_reduce(local, process_group)
    if not count(x):  # a mean of nothing is NaN; its gradient's sum has to be joined, too
        return lambda mean: all_reduce(mean.nan_to_num() * share, process_group)
    return lambda mean: all_reduce(mean * share, process_group)


def count(x: torch.Tensor) -> int:
    """The values of each channel of x [N, C, *space]."""
    return x.shape[0] * positions(x)


def positions(x: torch.Tensor) -> int:
    """Those of x [N, C, *space] in space."""
    return math.prod(x.shape[2:])


def averaged(old: torch.Tensor, new: torch.Tensor, momentum: float) -> torch.Tensor:
    """The running average [C], in which `momentum` is the weight of the new; no gradient.

    Its dtype stays.
    """
    new = (1 - momentum) * computed(old) + momentum * new.reshape(old.shape)
    return new.detach().to(old.dtype)


def scaled(y: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None) -> torch.Tensor:
    """The product with the weight plus the bias, of those that there are."""
    y = y if weight is None else y * along(weight, y)
    return y if bias is None else y + along(bias, y)


def check_input(x: torch.Tensor, channels: int) -> None:
    """Raise an error unless x is floating-point, a batch, and has the channels in dimension 1."""
    check_floating(x=x)
    check_rank(x.shape)
    check_channels(x.shape, 1, channels)
