"""Which steps take statistics, and what a run of both kinds of steps costs."""

import itertools

from jaxnorm.rule import due_steps

RUN = 1000
"""Steps of the run over which the cost is averaged."""

LATE = 1000
"""Behind which step the long run begins: no schedule is dense there."""

ALIKE, WITH, WITHOUT = "step", "with statistics", "without statistics"
"""The parts of a method: its only kind of step, or its two."""


def is_due(step: int, every: int) -> bool:
    """Whether a step, counted from 0, takes statistics."""
    return due_steps(step + 1, every)[-1]


def parts(every: int) -> tuple[str, ...]:
    """The kinds of steps that there are with this `statistics_every`."""
    return (ALIKE,) if every == 1 else (WITH, WITHOUT)


def first_of(part: str, every: int) -> int:
    """A late step at which that part begins; after it as many of its kind as there are in a row."""
    due = next(step for step in itertools.count(LATE) if is_due(step, every))
    return due + 1 if part == WITHOUT else due


def in_a_row(part: str, every: int, limit: int) -> int:
    """How many such steps follow each other, at most so many."""
    first = first_of(part, every)
    row = (is_due(step, every) == (part != WITHOUT) for step in range(first, first + limit))
    return sum(1 for _ in itertools.takewhile(bool, row))


def share_of_run(every: int) -> float:
    """Of the steps of a run, those with statistics."""
    return sum(due_steps(RUN, every)) / RUN


def share_in_the_long_run(every: int) -> float:
    """Of all steps, once the schedule has thinned out."""
    return 1 / every
