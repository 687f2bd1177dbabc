"""Interleaved timing: every method in every round, beside the plain step of that round."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.bench import schedule
from experiments.bench.steps import Step

BLOCK_SECONDS = 0.1
"""About as long is timed at once."""

MOST_STEPS = 10
"""In a block: fewer than lie between two steps with statistics, and as many as SOAP's period."""

Seconds = dict[str, list[float]]
"""Of a step, by its part, in every round."""


@dataclass(frozen=True)
class Spread:
    """Median and quartiles over rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float] | np.ndarray) -> "Spread":
        """Of some values; NaN of none."""
        if not len(values):
            return cls(math.nan, math.nan, math.nan)
        low, median, high = np.percentile(values, (25, 50, 75))
        return cls(float(median), float(low), float(high))

    def __str__(self) -> str:
        """As tables have it."""
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


def block_size(step: Step) -> int:
    """How many plain steps are timed at once."""
    begin = time.perf_counter()
    step()
    step.wait()
    step()
    step.wait()
    each = (time.perf_counter() - begin) / 2
    return max(1, min(MOST_STEPS, round(BLOCK_SECONDS / each)))


def seconds_of(step: Step, part: str, steps: int) -> float:
    """Seconds of one step of that part, on average over so many.

    As many as follow each other are timed together, and the way to where they begin is not.
    """
    row = schedule.in_a_row(part, step.every, steps)
    total, done = 0.0, 0
    while done < steps:
        if step.every > 1:
            step.go_to(part)
        count = min(row, steps - done)
        begin = time.perf_counter()
        for _ in range(count):
            step()
        step.wait()
        total, done = total + time.perf_counter() - begin, done + count
    return total / steps


def time_round(
    steps: Mapping[str, Step],
    size: int,
    number: int,
    seconds: Mapping[str, Seconds],
    on_error: Callable[[str, Exception], Any],
) -> None:
    """Time every method once, another one first in every round.

    Args:
        steps: by the name of the method.
        size: steps of a block.
        number: of the round.
        seconds: where the results go, once all methods have theirs.
        on_error: told of the method that raised; its results are the caller's to drop.
    """
    names = list(steps)
    names = names[number % len(names) :] + names[: number % len(names)]
    found: dict[str, dict[str, float]] = {}
    for name in names:
        step = steps[name]
        try:
            parts = schedule.parts(step.every)
            found[name] = {part: seconds_of(step, part, size) for part in parts}
        except Exception as error:
            on_error(name, error)
    for name, parts in found.items():
        for part, value in parts.items():
            seconds[name].setdefault(part, []).append(value)


def ratios(seconds: Seconds, plain: Seconds, every: int) -> dict[str, Spread]:
    """Time of a method's step by that of the plain step in the same round.

    Args:
        seconds: of the method.
        plain: of the plain step.
        every: `statistics_every` of the method's rule.

    Returns:
        By what it is of: `schedule.parts`, "run" (the average over `schedule.RUN` steps from the
        beginning) and "long run".
    """
    unit = np.array(plain[schedule.ALIKE])
    each = {part: np.array(values) / unit[: len(values)] for part, values in seconds.items()}
    if every == 1:
        only = Spread.of(each[schedule.ALIKE])
        return {schedule.ALIKE: only, "run": only, "long run": only}
    rare, common = each[schedule.WITH], each[schedule.WITHOUT]
    found = {part: Spread.of(values) for part, values in each.items()}
    for name, share in (
        ("run", schedule.share_of_run(every)),
        ("long run", schedule.share_in_the_long_run(every)),
    ):
        found[name] = Spread.of(share * rare + (1 - share) * common)
    return found
