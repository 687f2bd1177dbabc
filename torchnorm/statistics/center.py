"""About what the sums of a batch are taken, so that large means do not cost them digits. Pure."""

import torch

from torchnorm.statistics.batch import Batch

#: (samples, deviations): a mean beyond so many of them costs a sum about 0 its digits, so the first
#: batch is summed about its own means, if it has so many samples. (Few may lie close by chance, and
#: sums of several parts about their own means tell nothing of all: so rather late than early.)
_FAR = ((8, 16.0), (4, 256.0))
#: The same in double precision.
_FAR_DOUBLE = ((8, 64.0), (4, 4096.0))
#: The same where sums are packed (see `Rule.statistics_dtype`), and have few digits to lose.
_FAR_PACKED = ((8, 2.0), (4, 32.0))


def center_of(
    batch: Batch, mean: torch.Tensor, before: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(About what to sum, where that is the batch's own mean), each [C].

    Args:
        batch: of this call.
        mean: of its inputs [C].
        before: the center of the batches before [C]; None or 0: there were none.
    """
    before = torch.zeros_like(mean) if before is None else before.to(mean.dtype)
    count = batch.x_samples
    known, plain = (before != 0).any(), before.device.type == "cpu"
    if plain and not torch.compiler.is_compiling():
        if torch._C._are_functorch_transforms_active():
            plain = False
        elif bool(known):
            return before, torch.zeros_like(mean)
    (many, near), (few, distant) = _limits(batch, mean)
    count = count if isinstance(count, torch.Tensor) else mean.new_full((), count)
    beyond = torch.where(count >= many, near, distant).to(mean.dtype)
    x = batch.every.x - batch.operation.over_samples(mean)
    # (About the mean as it should be: the rounding of a sum is no variance of a constant.)
    rounding = batch.counted_sum(x) / count.clamp_min(1)
    variance = batch.counted_sum(x**2) / count.clamp_min(1) - rounding**2
    # What is constant in this part need not be in the others, and loses nothing about 0.
    varies = variance > (4 * torch.finfo(mean.dtype).eps * mean) ** 2
    far = (count >= few) & (mean**2 > beyond**2 * variance) & varies & ~known
    return torch.where(far, mean, before), far.to(mean.dtype)


def _limits(batch: Batch, mean: torch.Tensor) -> tuple[tuple[int, float], tuple[int, float]]:
    if batch.rule.statistics_dtype is not None:
        return _FAR_PACKED
    return _FAR_DOUBLE if mean.dtype == torch.float64 else _FAR
