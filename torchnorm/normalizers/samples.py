"""The samples of a normalizer: where they lie, their sums, running averages."""

import math
from collections.abc import Callable
from typing import Any

import torch

from torchnorm.checks import check_floating
from torchnorm.normalizers.all_reduce import all_reduce
from torchnorm.normalizers.refusals import check_channels, check_values

#: Added to sums of weights: far below any that matters, and not 0 in float32.
TINY = 1e-30


def rows_of(x: torch.Tensor, channels: int | None) -> tuple[torch.Tensor, Callable]:
    """The rows of x, [samples, positions, channels], in at least float32, and the way back."""
    check_floating(x=x)
    check_channels(tuple(x.shape), 1, channels)
    last = x.movedim(1, -1)
    positions = math.prod(last.shape[1:-1])
    rows = last.reshape(last.shape[0], positions, last.shape[-1])

    def restore(rows: torch.Tensor) -> torch.Tensor:
        return rows.reshape(last.shape).movedim(-1, 1)

    return rows.to(torch.promote_types(x.dtype, torch.float32)), restore


class Samples:
    """Sums over the samples of this process, or of all in a group.

    Args:
        x: the rows, [samples, positions, channels].
        process_group: the processes over which the batch is spread, or None.
    """

    def __init__(self, x: torch.Tensor, process_group: Any = None) -> None:
        self.process_group = process_group
        if process_group is None:
            check_values(tuple(x.shape), -1)
        self.count = self.total(x.new_tensor(x.shape[0] * x.shape[1]))

    def total(self, local: torch.Tensor) -> torch.Tensor:
        """Of all processes; a gradient flows through."""
        return all_reduce(local, self.process_group)

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """Over samples and positions: [C]."""
        return self.total(x.sum((0, 1)))

    def mean(self, x: torch.Tensor) -> torch.Tensor:
        """Over samples and positions: [C]."""
        return self.sum(x) / self.count


def running(old: Any, new: Any, momentum: float) -> Any:
    """The running averages after a batch, of which the gradient knows nothing."""
    pairs = zip(old, new, strict=True)
    return type(old)(
        *((1 - momentum) * old + momentum * new.detach().to(old.dtype) for old, new in pairs)
    )


def affine(
    rows: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None
) -> torch.Tensor:
    """Rows * weight + bias, in the precision of the rows."""
    if weight is not None:
        rows = rows * weight.to(rows.dtype)
    return rows if bias is None else rows + bias.to(rows.dtype)
