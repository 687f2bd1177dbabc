"""From records to what is reported: each method at its best rate."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from experiments.records.runs import Record

Edge = Literal["smallest", "largest", "only"]

TIMED = 50, 300
"""So many steps of a run are timed at least (fewer are too short to be timed), and at most."""


@dataclass(frozen=True)
class Statistic:
    """Some values, one for each seed.

    Attributes:
        mean: their mean.
        std: their standard deviation (divisor n - 1); None for a single value.
        low: the smallest.
        high: the largest.
    """

    mean: float
    std: float | None
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Statistic | None":
        """The statistic of some values; None if there are none."""
        if not values:
            return None
        std = float(np.std(values, ddof=1)) if len(values) > 1 else None
        return cls(float(np.mean(values)), std, min(values), max(values))

    def times(self, factor: float) -> "Statistic":
        """The statistic of all values times a positive factor."""
        std = None if self.std is None else self.std * factor
        return Statistic(self.mean * factor, std, self.low * factor, self.high * factor)


@dataclass(frozen=True)
class MethodSummary:
    """A method at its best rate.

    Attributes:
        method: its name on the command line.
        finals: final training loss over the seeds at each rate at which none diverged, ascending.
        lost: the other rates, at which at least one did.
        best: the rate with the smallest mean final training loss among those at which no seed
            diverged; None if there is none. The test figure has no part in this.
        edge: how the best rate lies on the edge of the grid; None if it is inside.
        runs: the records at the best rate, by seed.
        steps: steps to the target loss, of the runs that reached it; None if none did.
        reached: how many runs did.
        final: final training loss.
        figure: the same in the unit of the test figure, where there is such a thing.
        test: test figure.
        seconds: training time of all runs of the method together, all rates, not compilation.
        compile_seconds: time of its compilation.
        seconds_per_step: of one run alone; None where that was not measured.
        steps_to_time: how many steps of a run are to be timed for that: those to the target, within
            the bounds of `TIMED`; all of them where none got there.
    """

    method: str
    finals: dict[float, Statistic]
    lost: tuple[float, ...]
    best: float | None
    edge: Edge | None
    runs: tuple[Record, ...]
    steps: Statistic | None
    reached: int
    final: Statistic | None
    figure: Statistic | None
    test: Statistic | None
    seconds: float
    compile_seconds: float
    seconds_per_step: float | None
    steps_to_time: int

    @property
    def seconds_to_target(self) -> Statistic | None:
        """Seconds of one run alone to the target loss, of the runs that reached it."""
        if self.steps is None or self.seconds_per_step is None:
            return None
        return self.steps.times(self.seconds_per_step)

    @property
    def all_reached(self) -> bool:
        """Whether every seed got to the target loss."""
        return 0 < self.reached == len(self.runs)


def summarize(records: Sequence[Record]) -> list[MethodSummary]:
    """Summarize each method, in the order in which the methods appear."""
    methods = dict.fromkeys(record["method"] for record in records)
    return [_summarize_method([r for r in records if r["method"] == name]) for name in methods]


def _summarize_method(records: list[Record]) -> MethodSummary:
    rates = sorted({record["rate"] for record in records})
    finals, lost = {}, []
    for rate in rates:
        runs = [record for record in records if record["rate"] == rate]
        statistic = Statistic.of(_known(runs, "final_train_loss"))
        # One seed that diverged is enough: a mean over the lucky ones would flatter the rate.
        if statistic is None or any(run["final_train_loss"] is None for run in runs):
            lost.append(rate)
        else:
            finals[rate] = statistic
    best = min(finals, key=lambda rate: finals[rate].mean, default=None)
    runs = sorted((r for r in records if r["rate"] == best), key=lambda record: record["seed"])
    steps = _known(runs, "steps_to_target")
    return MethodSummary(
        method=records[0]["method"],
        finals=finals,
        lost=tuple(lost),
        best=best,
        edge=_edge(rates, best),
        runs=tuple(runs),
        steps=Statistic.of(steps),
        reached=len(steps),
        final=Statistic.of(_known(runs, "final_train_loss")),
        figure=Statistic.of(_known(runs, "final_train_figure")),
        test=Statistic.of(_known(runs, "test")),
        seconds=records[0]["seconds_together"],
        compile_seconds=records[0]["compile_seconds"],
        seconds_per_step=records[0].get("seconds_per_step"),
        steps_to_time=_steps_to_time(steps, len(records[0]["curve"])),
    )


def _steps_to_time(steps: Sequence[float], most: int) -> int:
    return min(most, int(np.clip(np.mean(steps) if steps else most, *TIMED)))


def _edge(rates: Sequence[float], best: float | None) -> Edge | None:
    if best is None:
        return None
    if len(rates) == 1:
        return "only"
    if best == rates[0]:
        return "smallest"
    return "largest" if best == rates[-1] else None


def _known(runs: Sequence[Record], key: str) -> list[float]:
    return [run[key] for run in runs if run[key] is not None]
