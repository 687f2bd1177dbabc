"""Ollivier's quasi-diagonal metric as published, for any optimizer of torch.optim."""

import torch
from torch import nn

from torchnorm.optim.batches import Inputs, merged
from torchnorm.optim.layers import Pair
from torchnorm.optim.preconditioner import (
    Averages,
    Preconditioner,
    all_finite,
    check_number,
)


def quasi_diagonal(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    gamma: float = 0.01,
    epsilon: float = 1e-12,
) -> torch.optim.Optimizer:
    """Ollivier's quasi-diagonal outer-product metric: the update of QDRiemaNNLinear.

    With ``m = g_z^2`` of every sample and neuron:

        M00 = sum_n m,  M0 = sum_n m x,  M2 = sum_n m x^2       averaged: share gamma of the new
        g_W <- (M00 g_W - M0 g_b) / clip(M2 M00 - M0^2, epsilon, 1e25)
        g_b <- (g_b - sum_i M0 g_W) / (M00 + epsilon)           with the new g_W

    The gradients are replaced when `step` is called, before the optimizer sees them. The metric of
    the first step is that of its batch. Without a bias that is learned the metric is its diagonal,
    ``g_W <- g_W / (M2 + epsilon)``, the published diagonal form. The g_W of an input that never
    changes is 0, as it would be published without rounding, which epsilon would blow up.

    The step is as long as 1 / g_z: with a loss k times as large 1 / k of it, and with the mean over
    N samples in the place of their sum N times. Epsilon is absolute, so it should be far below
    ``M00 M2``, of the order of g_z to the fourth: prefer the sum over samples to the mean. Under
    `torch.amp.GradScaler` the gradients are unscaled before the step, but those that make up the
    metric are not: use bfloat16, which needs none.

    What is not in the published code, which has dense layers only: convolutions (an input is a
    channel at a tap, a sample an image and a position). Gradients accumulated over micro-batches
    have the metric of all of them, and enter the average once.

    Args:
        optimizer: as in `bnp`.
        model: as in `bnp`.
        gamma: the share of the new in the running metric, in (0, 1].
        epsilon: added, or least, where it is divided; > 0.

    Returns:
        The same optimizer, as `bnp`; the entry of the state_dict is ``"quasi_diagonal"``.

    Raises:
        TypeError, ValueError: for a gamma or epsilon out of range, and as `bnp`.

    Transformations, dtypes: as `bnp`.

    Example:
        >>> import torch, torchnorm
        >>> _ = torch.manual_seed(0)
        >>> x, y = torch.arange(8.0).reshape(8, 1) + 5, torch.arange(8.0).cos().reshape(8, 1)
        >>> model = torch.nn.Linear(1, 1)
        >>> optimizer = torchnorm.optim.quasi_diagonal(
        ...     torch.optim.SGD(model.parameters(), lr=0.3), model)
        >>> for _ in range(100):
        ...     optimizer.zero_grad()
        ...     loss = ((model(x) - y) ** 2).sum()
        ...     loss.backward()
        ...     optimizer.step()
        >>> round(loss.item(), 3)  # least squares
        4.123

    References:
        Ollivier, arXiv 1303.0818; Marceau-Caron, Ollivier, arXiv 1602.08007, and their module
        QDRiemaNNLinear in clementfarabet/lua---nnx.
    """
    check_number("gamma", gamma, "a number in (0, 1], the share of the new", lambda g: 0 < g <= 1)
    check_number("epsilon", epsilon, "a finite number > 0", lambda epsilon: epsilon > 0)

    def change(inputs: Inputs, gradient: Pair, averages: Averages | None) -> tuple[Pair, Averages]:
        metric = _averaged(averages, inputs, gamma)
        mass, mean, second = metric.values()
        weight, bias = gradient
        if bias is None:
            return Pair(weight / (second + epsilon), None), metric
        # M00 g_W - M0 g_b, over M2 M00 - M0^2.
        numerator = mass * (weight - mean * bias)
        numerator = torch.where(_constant(mass, mean, second), 0, numerator)
        weight = numerator / (mass * second).clamp(epsilon, 1e25)
        moved = (mass * mean * weight).sum(tuple(range(1, weight.ndim)), keepdim=True)
        return Pair(weight, (bias - moved) / (mass + epsilon)), metric

    Preconditioner("quasi_diagonal", optimizer, model, "error", change)
    return optimizer


def _constant(mass: torch.Tensor, mean: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Whether an input is the same in all samples; its M00 g_W - M0 g_b is 0, but for rounding."""
    return second <= mass * (_ROUNDINGS * torch.finfo(mean.dtype).eps * mean) ** 2


#: How many of them a difference may have lost.
_ROUNDINGS = 16


def _averaged(old: Averages | None, inputs: Inputs, gamma: float) -> Averages:
    """M00, M0 / M00 and M2 - M0^2 / M00 of (1 - gamma) times the old sums and gamma the new."""
    mass, mean, second = inputs[1:]
    if old is None:
        new, before = (mass, mean, second), map(torch.zeros_like, (mass, mean, second))
    else:
        before = old["mass"], old["mean"], old["second"]
        share = 1 - gamma
        new = merged(
            (share * before[0], before[1], share * before[2]), (gamma * mass, mean, gamma * second)
        )
    finite = all_finite(*new)
    values = (torch.where(finite, *both) for both in zip(new, before, strict=True))
    return dict(zip(("mass", "mean", "second"), values, strict=True))
