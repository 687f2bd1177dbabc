"""The change of coordinates of one layer: gradients into it, steps back out of it. Pure algebra.

Per neuron, z = w.x + b = w~.x~ + b~ with x~ = (x - mean) / sigma, w~ = sigma w, b~ = b + mean.w.
Everything broadcasts against the weight, whose first axis is the neurons.
"""

import torch

from torchnorm.statistics import Moments


def covariant(centred_gradient: torch.Tensor, moments: Moments) -> torch.Tensor:
    """dL/dw~ = (g_W - mean g_b) / sigma; dL/db~ is g_b itself."""
    return centred_gradient / moments.sigma


def pull_back(
    step: torch.Tensor, bias_step: torch.Tensor | None, moments: Moments
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A step in the new coordinates as one of the parameters: (dW, db).

    dW = dw~ / sigma, db = db~ - sum_i mean dW.
    """
    weight_step = step / moments.sigma
    if bias_step is None:
        return weight_step, None
    # A mean of 0 moves nothing, not even where dW is NaN (0 NaN would be NaN).
    moved = torch.where(moments.mean == 0, 0, moments.mean * weight_step)
    return weight_step, bias_step - moved.flatten(1).sum(1)
