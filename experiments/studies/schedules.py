"""In which steps statistics are taken, and over which share of the rows: what is tried of it."""

from typing import Literal, NamedTuple

import numpy as np

from jaxnorm.rule import due_steps


class Schedule(NamedTuple):
    """When statistics are taken.

    Attributes:
        title: as in tables and plots.
        most: see `statistics_every` of `jaxnorm.Rule`.
        smoothing: likewise.
        dense: whether the interval begins at 1 and grows, as that of `jaxnorm.Rule` does.
        part: the neurons' statistics are those of this part of the rows, as one over it.
        dtype: see `statistics_dtype` of `jaxnorm.Rule`.
    """

    title: str
    most: int
    smoothing: float = 0.5
    dense: bool = True
    part: int = 1
    dtype: Literal["bfloat16"] | None = None

    def mask(self, steps: int) -> np.ndarray:
        """Whether, at each step."""
        if self.dense:
            return np.array(due_steps(steps, self.most))
        return np.arange(steps) % self.most == 0

    def cost(self, steps: int) -> float:
        """The share of all rows of all steps that the neurons' statistics are taken over."""
        return float(self.mask(steps).mean()) / self.part


SCHEDULES = {
    "every_step": Schedule("every step", 1, smoothing=0.0),
    "unsmoothed": Schedule("default, no smoothing", 16, smoothing=0.0),
    "at_most_4": Schedule("at most every 4th", 4),
    "at_most_8": Schedule("at most every 8th", 8),
    "default": Schedule("at most every 16th (default)", 16),
    "at_most_32": Schedule("at most every 32nd", 32),
    "at_most_64": Schedule("at most every 64th", 64),
    "no_dense_start": Schedule("every 16th from the start on", 16, dense=False),
    "smoothing_8": Schedule("default, smoothing 0.8", 16, smoothing=0.8),
    "rows_4": Schedule("default, a quarter of the rows", 16, part=4),
    "rows_16": Schedule("default, a sixteenth of the rows", 16, part=16),
    "bfloat16": Schedule("default, kept in bfloat16", 16, dtype="bfloat16"),
}
"""By their names on the command line. The first one is what the others are held against; those of
the same rule, which one program trains, come one after the other."""
