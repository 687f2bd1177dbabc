"""Derivative of the activation -> sample weight."""

from collections.abc import Callable

import torch

from torchnorm.rule import Weighting


def needs_slope(weighting: Weighting) -> bool:
    """Whether the sample weight depends on the activation's derivative."""
    return weighting in ("gate", "gate_squared", "signed")


def sample_weight(
    weighting: Weighting,
    slope: torch.Tensor | None,
    g_z: torch.Tensor,
    maximum: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor | None:
    """The sample weight s[n,o], scaled to a largest value of 1 per neuron; None if s = 1.

    The statistics do not change when s is scaled by a constant, and with this one s^2 neither
    underflows (a saturated sigmoid, a vanishing gradient) nor overflows. A weight that is NaN or
    infinite counts as 0.

    Args:
        weighting: see `Rule`.
        slope: phi'(z) (see `gate_slope`), None for 1.
        g_z: gradient at z, in at least float32.
        maximum: the largest value of each neuron, over all devices that share the batch; keeps the
            axes.
    """
    base = _base(weighting, slope, g_z)
    if base is None or base.dtype == torch.bool:
        return _weight(weighting, base, g_z)
    top = maximum(base.abs())
    return _weight(weighting, base / torch.where(top > 0, top, 1), g_z)


def raw_weight(
    weighting: Weighting, slope: torch.Tensor | None, g_z: torch.Tensor
) -> torch.Tensor | None:
    """`sample_weight` in its own unit, so that the sums of several batches can be added."""
    return _weight(weighting, _base(weighting, slope, g_z), g_z)


def _base(weighting, slope, g_z):
    """What the weight is a function of; None if s = 1."""
    base = g_z if weighting == "error" else slope
    if weighting == "uniform" or base is None:
        return None
    if base.dtype == torch.bool:
        return base
    base = base.to(g_z.dtype)
    return torch.where(torch.isfinite(base), base, 0)


def _weight(weighting, base, g_z):
    if base is None or base.dtype == torch.bool:
        return None if base is None else base.to(g_z.dtype)
    if weighting == "signed":
        return base
    return base.abs() if weighting == "gate" else base * base
