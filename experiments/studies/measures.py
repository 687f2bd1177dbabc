"""What a curve of final losses over rates says about a method beside the plain one."""

import math
from typing import NamedTuple

import numpy as np

from experiments.studies.grid import Finals, best_index, mean_loss, rate_of
from experiments.studies.study import Further

SLACK = 1.05
"""A rate is good if the loss is at most so many times the best."""

SMOOTHED = 3
"""Pieces of a curve in the running mean that is held against the plain optimizer's final loss."""

GAIN = 0.98
"""A method gains if at its best rate it ends below so much of the plain loss."""


class Measures(NamedTuple):
    """A method on a problem; losses are over the plain one at its best rate.

    Attributes:
        at_plain: final loss at the plain optimizer's best rate; inf where a seed diverges.
        error: standard error of that, over the seeds, which both share.
        best: final loss at its own best rate.
        rate: index of that rate.
        factor: that rate / the plain optimizer's best one.
        at_edge: whether that rate is the first or the last of the grid.
        window: largest good rate / smallest.
        steps: of the plain optimizer's, the share that leads to its final loss, at its best rate;
            inf where none does.
        test: figure of the test samples, at the plain optimizer's best rate.
    """

    at_plain: float
    error: float
    best: float
    rate: int
    factor: float
    at_edge: bool
    window: float
    steps: float
    test: float

    @property
    def share(self) -> float | None:
        """The share of the gain at its own best rate that the plain rate gets; None: no gain."""
        return (1 - self.at_plain) / (1 - self.best) if self.best < GAIN else None


Found = dict[str, dict[str, Measures | None]]
"""Problem -> method -> what was measured; None where it diverges at every rate."""


def measure(finals: Finals, further: Further, plain: Finals) -> Measures | None:
    """Hold a method against the plain one; None where either diverges at every rate.

    Args:
        finals: of the method, on the same rates as the plain one's.
        further: of the method, "curve" and "test".
        plain: final losses of the plain one.
    """
    at, best = best_index(plain), best_index(finals)
    if at is None or best is None:
        return None
    unit, indices = mean_loss(plain, at), sorted(finals)
    differences = np.array(finals[at]) - np.array(plain[at])
    with np.errstate(invalid="ignore"):
        spread = differences.std(ddof=1) if len(differences) > 1 else math.nan
    tests = [math.nan if value is None else value for value in further["test"][at]]
    return Measures(
        at_plain=mean_loss(finals, at) / unit,
        error=float(spread) / math.sqrt(len(differences)) / unit,
        best=mean_loss(finals, best) / unit,
        rate=best,
        factor=rate_of(best - at),
        at_edge=best in (indices[0], indices[-1]),
        window=window(finals),
        steps=share_of_steps(further["curve"][at], unit),
        test=float(np.mean(tests)),
    )


def window(finals: Finals) -> float:
    """Largest good rate over the smallest: straight lines between the rates, both axes log.

    It ends at the last good rate where the next one diverges, and at the end of the grid.
    """
    indices = sorted(finals)
    losses = [mean_loss(finals, index) for index in indices]
    best = int(np.argmin(losses))
    limit = losses[best] * SLACK

    def end(step: int) -> float:
        at = best
        while 0 <= at + step < len(losses) and losses[at + step] <= limit:
            at += step
        beyond = at + step
        if not 0 <= beyond < len(losses) or not math.isfinite(losses[beyond]):
            return indices[at]
        share = math.log(limit / losses[at]) / math.log(losses[beyond] / losses[at])
        return indices[at] + share * (indices[beyond] - indices[at])

    return rate_of(end(1) - end(-1))


def share_of_steps(curves: list[list[float | None]], target: float) -> float:
    """The share of the steps after which the mean of some curves [S, P] is below a target."""
    values = np.array([[math.inf if v is None else v for v in curve] for curve in curves])
    mean, width = values.mean(axis=0), min(SMOOTHED, values.shape[1])
    smooth = np.lib.stride_tricks.sliding_window_view(mean, width).mean(axis=-1)
    below = np.flatnonzero(smooth <= target)
    return (int(below[0]) + width) / len(mean) if below.size else math.inf


def pieces(losses: np.ndarray, count: int) -> np.ndarray:
    """Means [..., P] of P parts of some curves [..., T], P at most `count`."""
    parts = np.array_split(losses, min(count, losses.shape[-1]), axis=-1)
    return np.stack([part.mean(axis=-1) for part in parts], axis=-1)
