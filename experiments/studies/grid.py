"""The log grid of rates, and the search for the best one."""

import math
from collections.abc import Callable

import numpy as np

PER_DECADE = 4
"""Rates in a decade: a best rate is known to within a factor 10^(1/8) = 1.33."""

Finals = dict[int, list[float]]
"""Index of a rate -> final loss of each seed; inf for one that diverged."""


def rate_of(index: float) -> float:
    """A rate of the log grid; of a fraction, one between."""
    return 10 ** (index / PER_DECADE)


def index_of(rate: float) -> int:
    """The nearest rate of the log grid."""
    return round(PER_DECADE * math.log10(rate))


def mean_loss(finals: Finals, index: int) -> float:
    """Mean over the seeds at a rate; inf where one diverged, or where it was not tried."""
    return float(np.mean(finals.get(index, [math.inf])))


def curve(finals: Finals, unit: float = 1.0) -> tuple[list[float], list[float]]:
    """Rates and mean losses for a plot, without those that diverged."""
    fine = [index for index in finals if math.isfinite(mean_loss(finals, index))]
    return [rate_of(index) for index in fine], [mean_loss(finals, i) / unit for i in fine]


def best_index(finals: Finals) -> int | None:
    """The rate with the smallest mean final loss; None if all diverged."""
    best = min(finals, key=lambda index: mean_loss(finals, index))
    return best if math.isfinite(mean_loss(finals, best)) else None


def search(
    train: Callable[[list[float]], np.ndarray],
    guess: float,
    portion: int = 6,
    stride: int = 1,
    most: int = 60,
) -> Finals:
    """Try rates around a guess until the best has two neighbors on either side, or diverged ones.

    Args:
        train: rates [portion] -> final losses [portion, S].
        guess: a rate.
        portion: how many rates are tried at once.
        stride: of the rates on the log grid; with more than 1 a single neighbor is enough.
        most: rates that are tried at most.
    """
    middle = index_of(guess)
    first, width = middle - portion // 2 * stride, portion * stride
    indices = list(range(first, first + width, stride))
    inside = 2 if stride == 1 else stride
    finals: Finals = {}
    while len(finals) < most:
        losses = train([rate_of(index) for index in indices])
        finals |= {i: [float(v) for v in row] for i, row in zip(indices, losses, strict=True)}
        low, high, best = min(finals), max(finals), best_index(finals)
        lower = list(range(low - width, low, stride))
        higher = list(range(high + stride, high + stride + width, stride))
        if best is None:  # all too large, or now and then too small for anything to be learned
            indices = lower if len(finals) // portion % 3 else higher
        elif best < low + inside:
            indices = lower
        elif best > high - inside and math.isfinite(mean_loss(finals, high)):
            indices = higher
        else:
            break
    return dict(sorted(finals.items()))
