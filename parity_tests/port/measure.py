"""How far two arrays are apart, and where most."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Distance:
    """Between two arrays.

    Attributes:
        error: ||a - b|| / max(||b||, floor), infinite where the shapes differ or a number is not
            finite on one side only.
        entry: the index of the entry with the largest difference.
        reference: the reference's number there.
        other: the other's.
    """

    error: float
    entry: tuple[int, ...] = ()
    reference: float = float("nan")
    other: float = float("nan")


def distance(other: np.ndarray, reference: np.ndarray, floor: float = 0.0) -> Distance:
    """Of `other` from `reference`; a norm below the floor counts as the floor.

    Entries that are infinite on both sides, such as those that a causal mask hides, are equal.
    """
    if other.shape != reference.shape:
        return Distance(float("inf"))
    if not other.size:
        return Distance(0.0)
    a, b = other.astype(np.float64), reference.astype(np.float64)
    with np.errstate(invalid="ignore"):
        difference = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
    difference = np.where(np.isnan(difference), np.inf, difference)
    entry = tuple(map(int, np.unravel_index(np.argmax(difference), a.shape)))
    size = max(float(np.linalg.norm(b[np.isfinite(b)])), floor)
    wrong = float(np.linalg.norm(difference.ravel()))
    error = 0.0 if wrong == 0 else wrong / size if size else float("inf")
    return Distance(error, entry, float(b[entry]), float(a[entry]))
