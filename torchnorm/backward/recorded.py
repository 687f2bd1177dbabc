"""The statistics of a batch, handed over as the gradient with respect to those before it."""

import torch

from torchnorm import checks
from torchnorm.activations import DEFERRED, Gate, resolve_gate
from torchnorm.operations.linear import LinearOperation
from torchnorm.rule import Rule
from torchnorm.statistics import tracked
from torchnorm.statistics.batch import Batch
from torchnorm.statistics.tracked import Statistics


def batch_statistics(batch: Batch, center: torch.Tensor) -> Statistics:
    """The batch's, about the center of those before, and in their dtype."""
    found = tracked.of_batch(batch, center)
    return found.map(lambda value: value.to(center.dtype))


def check_fits(
    statistics: Statistics,
    operation: LinearOperation,
    weight: torch.Tensor,
    gate: Gate,
    rule: Rule,
    *,
    centered: bool,
) -> None:
    """Raise a ValueError unless the statistics are those of such a layer."""
    gated = gate is DEFERRED or resolve_gate(gate) is not None
    shapes = tracked.shapes_of(operation, weight, rule, gated=gated, centered=centered)
    checks.check_statistics(statistics, shapes)
