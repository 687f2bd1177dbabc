"""What runs say: targets, steps to them, intervals and p-values. Pure NumPy."""

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

RESAMPLES = 10_000
"""Of the bootstrap."""


def steps_to(curve: Sequence[float], steps: int, target: float) -> float:
    """The first step at which a curve is at a target, or below.

    Args:
        curve: means of the loss over parts of a run of the same length, in order; inf or nan where
            it diverged.
        steps: of the run.
        target: loss.

    Returns:
        A number of steps, the end of the first such part; inf if there is none.
    """
    values = np.asarray(curve, float)
    below = np.flatnonzero(values <= target)
    return math.inf if not below.size else (int(below[0]) + 1) * steps / len(values)


def target_of(baselines: Mapping[str, Sequence[float]]) -> tuple[str, float]:
    """(the best baseline, its median): the baseline with the smallest median final loss.

    Raises:
        ValueError: none of them has a median that is finite.
    """
    medians = {name: float(np.median(finals)) for name, finals in baselines.items()}
    best = min(medians, key=lambda name: medians[name], default="")
    if not best or not math.isfinite(medians[best]):
        raise ValueError(f"baselines: got medians {medians}, expected a finite one")
    return best, medians[best]


def paired_ratio(
    ours: Sequence[float], theirs: Sequence[float], *, seed: int = 0
) -> tuple[float, float, float]:
    """Median of the ratios seed by seed, and its 95 % interval by bootstrap over the seeds.

    Args:
        ours: one number for each seed, not negative; inf for a miss.
        theirs: likewise, on the same seeds.
        seed: of the resamples.
    """
    ratios = _ratios(ours, theirs)
    rng = np.random.default_rng(seed)
    chosen = rng.integers(0, len(ratios), (RESAMPLES, len(ratios)))
    medians = np.sort(_median(ratios[chosen]))
    low, high = medians[int(0.025 * RESAMPLES)], medians[int(0.975 * RESAMPLES)]
    return float(_median(ratios)), float(low), float(high)


def _ratios(ours: Sequence[float], theirs: Sequence[float]) -> np.ndarray:
    one, other = np.asarray(ours, float), np.asarray(theirs, float)
    if one.shape != other.shape or not one.size:
        raise ValueError(f"ours: got {len(one)} numbers, expected as many as theirs: {len(other)}")
    alike = (one == other) & (np.isinf(one) | (one == 0))  # a loss may be 0 in float32
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(alike, 1.0, one / other)


def _median(values: np.ndarray) -> np.ndarray:
    """Of the last axis; between a number and infinity lies infinity."""
    ordered = np.sort(values, axis=-1)
    middle = ordered.shape[-1] // 2
    upper = ordered[..., middle]
    if ordered.shape[-1] % 2:
        return upper
    lower = ordered[..., middle - 1]
    return np.where(np.isinf(upper), np.where(np.isinf(lower), lower, np.inf), (lower + upper) / 2)


def sign_flip(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Two-sided p-value that the log ratios are symmetric about 0: all flips of their signs.

    A miss counts as ten times the other one's number: by how much it misses is not known.
    """
    with np.errstate(divide="ignore"):
        logs = np.clip(np.log(_ratios(ours, theirs)), -math.log(10), math.log(10))
    flips = np.array(list(itertools.product((1, -1), repeat=len(logs))))
    sums = abs(flips @ logs)
    return float((sums >= sums[0] * (1 - 1e-12)).mean())


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p-values: below 0.05 together at most one time in twenty by chance (Holm, 1979)."""
    order = sorted(p_values, key=lambda name: p_values[name])
    adjusted, largest = {}, 0.0
    for rank, name in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}


def profile(ratios: Mapping[str, Sequence[float]], taus: Sequence[float]) -> dict[str, list[float]]:
    """Performance profile: the share of problems that a method solves within tau of the best.

    Args:
        ratios: method -> cost of each problem over the least of any method there; inf for a miss.
        taus: at least 1.
    """
    return {
        name: [float(np.mean(np.asarray(values) <= tau)) for tau in taus]
        for name, values in ratios.items()
    }
