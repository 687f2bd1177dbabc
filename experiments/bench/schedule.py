"""Which steps take statistics, and what a run of both kinds of steps costs."""

import itertools

from jaxnorm.rule import due_steps, is_due

RUN = 1000
"""Steps of the run over which the cost is averaged."""

LATE = 1000
"""As many steps were made before the timed ones: no schedule is dense there."""

ALIKE, WITH, WITHOUT = "step", "with statistics", "without statistics"
"""The parts of a method: its only kind of step, or its two."""


def parts(every: int) -> tuple[str, ...]:
    """The kinds of steps that there are with this `statistics_every`."""
    return (ALIKE,) if every == 1 else (WITH, WITHOUT)


def before(part: str, every: int) -> tuple[int, int]:
    """Where such steps begin: how many were made, and how many since statistics were taken last."""
    return LATE, 1 if part == WITHOUT else every


def in_a_row(part: str, every: int, limit: int) -> int:
    """How many such steps follow each other from there on, at most so many."""
    if part != WITHOUT:
        return limit if part == ALIKE else 1
    step, age = before(part, every)
    row = (not is_due(step + n, age + n, every) for n in range(limit))
    return sum(itertools.takewhile(bool, row))


def share_of_run(every: int) -> float:
    """Of the steps of a run, those with statistics."""
    return sum(due_steps(RUN, every)) / RUN


def share_in_the_long_run(every: int) -> float:
    """Of all steps, once the schedule has thinned out."""
    return 1 / every
