"""The statistics of a batch, handed over as the gradient with respect to those before it."""

import torch

from torchnorm.statistics import tracked
from torchnorm.statistics.batch import Batch
from torchnorm.statistics.tracked import Statistics


def batch_statistics(batch: Batch, center: torch.Tensor) -> Statistics:
    """The batch's, about the center of those before, and in their dtype."""
    found = tracked.of_batch(batch, center)
    return found.map(lambda value: value.to(center.dtype))
