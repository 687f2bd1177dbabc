"""The change of coordinates of one layer: gradients into it, steps back out of it. Pure algebra.

Per neuron, z = w.x + b = w~.x~ + b~ with x~ = (x - mean) / sigma, w~ = sigma w, b~ = b + mean.w.
Everything broadcasts against the weight, whose first axis is the neurons. With a `root` r (see
`Rule.step_scale`), w~ = r sigma w and b~ = r (b + mean.w).
"""

from typing import Any

import torch

from torchnorm.statistics.moments import Moments


def standardized(centered_gradient: torch.Tensor, moments: Moments) -> torch.Tensor:
    """dL/dw~ = (g_W - mean g_b) / sigma; dL/db~ is g_b itself."""
    return centered_gradient / moments.sigma


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


def gradient_into(
    g_w: torch.Tensor, g_b: torch.Tensor | None, moments: Moments, root: Any
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The plain gradient as that in the coordinates; where |mean| / sigma is large, g_W cancels."""
    if g_b is None:
        return standardized(g_w, moments) / root, None
    g_w = g_w - moments.mean * g_b.reshape(-1, *[1] * (g_w.ndim - 1))
    return standardized(g_w, moments) / root, g_b / root


def parameters_into(
    weight: torch.Tensor, bias: torch.Tensor | None, moments: Moments, root: Any
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(w~, b~)."""
    inside = moments.sigma * weight * root
    if bias is None:
        return inside, None
    # A mean of 0 moves nothing, not even where the weight is not finite.
    moved = torch.where(moments.mean == 0, 0, moments.mean * weight)
    return inside, (bias + moved.flatten(1).sum(1)) * root


def step_out_of(
    step: torch.Tensor, bias_step: torch.Tensor | None, moments: Moments, root: Any
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`pull_back`, of a step in coordinates with a root."""
    return pull_back(step / root, None if bias_step is None else bias_step / root, moments)
