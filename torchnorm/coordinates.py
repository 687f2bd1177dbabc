"""The change of coordinates of one layer: gradients into it, steps back out of it. Pure algebra.

Per neuron, z = w.x + b = w~.x~ + b~ with x~ = (x - mean) / sigma, w~ = sigma w, b~ = b + mean.w.
Everything, biases too, broadcasts against the weight, whose first axis is the neurons.
"""

from typing import NamedTuple

import torch


class Moments(NamedTuple):
    """Each neuron's input moments; everything broadcasts against the weight.

    Attributes:
        center: about which the sums were taken, per channel of x, [C].
        mean: where the inputs are centered.
        offset: mean - center, apart because the difference of two large numbers has lost it.
        sigma: what they are divided by.
        varies: where the inputs do; the rest has no gradient in the coordinates.
    """

    center: torch.Tensor
    mean: torch.Tensor
    offset: torch.Tensor
    sigma: torch.Tensor
    varies: torch.Tensor


def standardized(centered_gradient: torch.Tensor, moments: Moments) -> torch.Tensor:
    """dL/dw~ = (g_W - mean g_b) / sigma; dL/db~ is g_b itself."""
    return torch.where(moments.varies, centered_gradient / moments.sigma, 0)


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
    return weight_step, bias_step - _over_inputs(moved)


def gradient_into(
    g_w: torch.Tensor, g_b: torch.Tensor | None, moments: Moments
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The plain gradient as that in the coordinates; where |mean| / sigma is large, g_W cancels.

    An entry whose plain gradient is exactly 0 is not learning (frozen, pruned, masked), and has
    none here either.
    """
    centered = g_w if g_b is None else g_w - moments.mean * g_b
    return torch.where(g_w == 0, 0, standardized(centered, moments)), g_b


def parameters_into(
    weight: torch.Tensor, bias: torch.Tensor | None, moments: Moments
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(w~, b~)."""
    new = moments.sigma * weight
    if bias is None:
        return new, None
    # A mean of 0 moves nothing, not even where the weight is not finite.
    moved = torch.where(moments.mean == 0, 0, moments.mean * weight)
    return new, bias + _over_inputs(moved)


def _over_inputs(values: torch.Tensor) -> torch.Tensor:
    """The sum over all that feeds one neuron."""
    return values.sum(tuple(range(1, values.ndim)), keepdim=True)
