"""The statistics of a batch, as the gradient at those of the layer."""

import torch

from torchnorm import checks
from torchnorm.activations import DEFERRED, Gate, resolve_gate
from torchnorm.operations.linear import LinearOperation
from torchnorm.rule import Rule
from torchnorm.statistics import tracked
from torchnorm.statistics.batch import Batch
from torchnorm.statistics.tracked import Statistics


def check_statistics(
    statistics: Statistics,
    operation: LinearOperation,
    weight: torch.Tensor,
    gate: Gate,
    rule: Rule,
    *,
    centered: bool,
) -> None:
    """Raise a ValueError unless the statistics are such as this layer and rule have."""
    gated = gate is DEFERRED or resolve_gate(gate) is not None
    shapes = tracked.shapes_of(operation, weight, rule, gated=gated, centered=centered)
    found = statistics.map(lambda value: tuple(value.shape))
    checks.check_statistics(found.present(), shapes.present())


def recorded_statistics(batch: Batch, center: torch.Tensor) -> Statistics:
    """The batch's, in the dtype of those before."""
    found = tracked.of_batch(batch, center)
    return found.map(lambda value: value.to(center.dtype))
