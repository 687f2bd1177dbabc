"""In which steps statistics are taken, and over which share of the rows: what is tried of it."""

from typing import NamedTuple

import numpy as np


class Schedule(NamedTuple):
    """When statistics are taken.

    Attributes:
        title: as in tables and plots.
        most: the largest interval, a power of two.
        dense: whether the interval begins at 1 and grows, as that of `jaxnorm.Rule` does.
        part: the neurons' statistics are those of this part of the rows, as one over it.
        decay: see `jaxnorm.Rule`.
    """

    title: str
    most: int
    dense: bool = True
    part: int = 1
    decay: float = 0.0

    def mask(self, steps: int) -> np.ndarray:
        """Whether, at each step."""
        at = range(steps)
        return np.array(
            [t % (interval(t, self.most) if self.dense else self.most) == 0 for t in at]
        )

    def cost(self, steps: int) -> float:
        """The share of all rows of all steps that the neurons' statistics are taken over."""
        return float(self.mask(steps).mean()) / self.part


def interval(step: int, most: int) -> int:
    """The largest power of two up to a tenth of the steps made, at most `most`."""
    return min(most, 1 << (max(1, step // 10).bit_length() - 1))


SCHEDULES = {
    "every_step": Schedule("every step", 1),
    "at_most_4": Schedule("at most every 4th", 4),
    "at_most_8": Schedule("at most every 8th", 8),
    "default": Schedule("at most every 16th (default)", 16),
    "at_most_32": Schedule("at most every 32nd", 32),
    "at_most_64": Schedule("at most every 64th", 64),
    "no_dense_start": Schedule("every 16th from the start on", 16, dense=False),
    "decay_5": Schedule("default, decay 0.5", 16, decay=0.5),
    "decay_8": Schedule("default, decay 0.8", 16, decay=0.8),
    "rows_4": Schedule("default, a quarter of the rows", 16, part=4),
    "rows_4_decay_8": Schedule("default, a quarter of the rows, decay 0.8", 16, part=4, decay=0.8),
    "rows_16": Schedule("default, a sixteenth of the rows", 16, part=16),
    "rows_16_decay_8": Schedule("default, a sixteenth, decay 0.8", 16, part=16, decay=0.8),
}
"""By their names on the command line. The first one is what the others are held against; those of
the same rows, which one program trains, come one after the other."""
