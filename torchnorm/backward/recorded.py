"""The statistics of a batch, handed over as the gradient with respect to those before it."""

import torch

from torchnorm.statistics import tracked
from torchnorm.statistics.batch import Batch
from torchnorm.statistics.tracked import Statistics


def batch_statistics(batch: Batch, center: torch.Tensor) -> Statistics:
    """The batch's, about the center of those before, and in their dtypes."""
    found = tracked.of_batch(batch, center).map(lambda value: value.to(center.dtype))
    return found.packed() if batch.rule.statistics_dtype is not None else found
