"""Random roundings: what another order of the same sums, or fewer digits, may give."""

from __future__ import annotations

from typing import Any

import numpy as np


class Exact:
    """Leaves everything as it is."""

    def __call__(self, value: Any) -> Any:
        """The value."""
        return value

    def sum(self, terms: Any) -> Any:
        """The sum over the first axis."""
        return np.sum(terms, axis=0)

    def rewind(self) -> None:
        """Begin anew."""


class Roundings(Exact):
    """Changes every entry by a random part of its size.

    What is equal stays so, in an array, and between passes of the same network: a feature that is
    constant for all samples is constant after it.
    """

    def __init__(self, seed: int, dtype: str) -> None:
        self.seed, self.unit = seed, float(np.finfo(dtype).eps / 2)
        self.rewind()

    def rewind(self) -> None:
        """With the same roundings as at first."""
        self.rng = np.random.default_rng(self.seed)

    def sum(self, terms: Any) -> Any:
        """The sum over the first axis, each partial sum rounded."""
        partial = np.cumsum(terms, axis=0)
        size = np.sqrt(np.sum(partial**2, axis=0))
        return partial[-1] + (self(size) - size)

    def __call__(self, value: Any) -> Any:
        """Round, as it were: by a hash of the digits, of each place in the program its own."""
        part = np.abs(np.frexp(value)[0]) * self.rng.uniform(1e6, 1e7)
        return value * (1 + self.unit * (2 * (part - np.floor(part)) - 1))
