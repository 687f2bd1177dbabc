"""Derivative of the activation -> sample weight."""

from typing import Any

import torch

from torchnorm.rule import Weighting
from torchnorm.statistics.batch import Batch


def needs_slope(weighting: Weighting) -> bool:
    """Whether the sample weight depends on the activation's derivative."""
    return weighting in ("gate", "gate_squared", "signed")


def sample_weight(batch: Batch) -> torch.Tensor | None:
    """The sample weight s[n,o], scaled to a largest value of 1 per neuron; None if s = 1.

    The statistics of a batch do not change when s is scaled by a constant, and with this one s^2
    neither underflows (a saturated sigmoid, a vanishing gradient) nor overflows. A weight that is
    NaN or infinite counts as 0.
    """
    base = _base(batch)
    if base is not None and base.dtype != torch.bool:
        counts = batch.rows.counts
        top = batch.maximum((base if counts is None else base * (counts > 0)).abs())
        base = base / torch.where(top > 0, top, 1)
    return _weight(batch, base)


def raw_weight(batch: Batch) -> torch.Tensor | None:
    """`sample_weight` in its own unit, so that the sums of several batches can be added."""
    return _weight(batch, _base(batch))


def _base(batch: Batch) -> Any:
    """What the weight is a function of; None if s = 1."""
    weighting = batch.rule.weighting
    base = batch.rows.g_z if weighting == "error" else batch.slope
    if weighting == "uniform" or base is None or base.dtype == torch.bool:
        return None if weighting == "uniform" else base
    return base.to(batch.rows.g_z.dtype).nan_to_num(0, 0, 0)


def _weight(batch: Batch, base: Any) -> Any:
    weighting = batch.rule.weighting
    if base is None or base.dtype == torch.bool:
        return None if base is None else base.to(batch.rows.g_z.dtype)
    if weighting == "signed":
        return base
    return base.abs() if weighting == "gate" else base * base
