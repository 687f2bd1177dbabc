"""BatchNorm without its weight and bias, as a part of other normalizers."""

from typing import Any, NamedTuple

import torch

from torchnorm.normalizers.channels import along, averaged, check_count, count, moments

#: Which variance runs along: "flax": the biased one; "torch": the unbiased one, N/(N - 1) times it.
CONVENTIONS = ("flax", "torch")


class BatchStats(NamedTuple):
    """The running statistics of a BatchNorm.

    Attributes:
        mean: [C].
        var: [C].
    """

    mean: torch.Tensor
    var: torch.Tensor


def initial_batch_stats(channels: int, device: Any = None, dtype: Any = None) -> BatchStats:
    """Mean 0, variance 1."""
    to = {"device": device, "dtype": dtype}
    return BatchStats(torch.zeros(channels, **to), torch.ones(channels, **to))


def normalized(
    x: torch.Tensor,
    state: BatchStats,
    *,
    training: bool,
    momentum: float,
    eps: float,
    convention: str,
) -> tuple[torch.Tensor, BatchStats]:
    """(x - mean) / sqrt(var + eps), of the batch if `training`, and the new running statistics."""
    if not training:
        return (x - along(state.mean, x)) * torch.rsqrt(along(state.var, x) + eps), state
    values = count(x)
    check_count(x, values)
    mean, var, centered = moments(x)
    seen = var * (values / (values - 1)) if convention == "torch" else var
    new = BatchStats(averaged(state.mean, mean, momentum), averaged(state.var, seen, momentum))
    return centered * torch.rsqrt(var + eps), new
