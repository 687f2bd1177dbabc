"""Statistics in some of the steps only: does that keep the final loss and the safe rates?"""

import math
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

import jaxnorm
from experiments.report.drawing import legend_below
from experiments.report.tables import Table
from experiments.studies.grid import Finals, best_index, mean_loss, rate_of
from experiments.studies.options import StatisticsEveryOptions
from experiments.studies.problems import PROBLEMS, heading
from experiments.studies.schedules import SCHEDULES
from experiments.studies.study import Result, Study, grouped
from experiments.studies.tasks import MOMENTUM, TASKS, Language, final_losses
from experiments.training.method import make_optimizer
from experiments.training.trainer import Knobs, Trainer
from experiments.workloads.shakespeare import LENGTH

REFERENCE = next(iter(SCHEDULES))

LONGER = 2
"""A run has so many times the steps that the problem has in the study of rates."""

BELOW, ABOVE = 7, 1
"""The rates that are tried, a quarter of a decade apart: so many indices from the largest of the
problem's grid."""

TOLERANCE = 0.01
"""A schedule is as good if its loss is at most so much above that of every step, relative ..."""

SLACK = 1.2
"""A rate is safe if the loss is below so many times that of every step at its best rate."""


class Cell(NamedTuple):
    """A name in `PROBLEMS` and one in `SCHEDULES`."""

    problem: str
    schedule: str


class Verdict(NamedTuple):
    """A schedule held against statistics in every step, each at its own best rate.

    Attributes:
        ratio: of the final losses, mean over the seeds; inf where every rate diverges.
        error: standard error of that; 0 with a single seed.
        safe: index of the largest safe rate; None where there is none.
    """

    ratio: float
    error: float
    safe: int | None

    @property
    def as_good(self) -> bool:
        """... or no more than a standard error."""
        return self.ratio - 1 <= max(TOLERANCE, self.error)

    def is_as_safe_as(self, other: "Verdict") -> bool:
        """Whether its largest safe rate is at least the other's."""
        return other.safe is None or (self.safe is not None and self.safe >= other.safe)


class StatisticsEvery(Study):
    """The final loss at each rate under each schedule."""

    name = "statistics_every"
    notes = (
        f"Ratio: final loss over that of statistics in every step, each at its own best rate; mean "
        "± standard error over the seeds, which share initial weights and minibatches. As good: at "
        f"most {TOLERANCE:.0%} or one standard error above 1. Largest safe rate: no seed diverges "
        f"there, and the loss is below {SLACK:g} of the best one of every step. Cost: the share "
        "of all rows of all steps that the neurons' statistics are taken over. Smoothing is 0.8 "
        "where there are larger intervals and nothing else is said. Bold: the best rate.\n\n"
    )
    options: StatisticsEveryOptions

    def __init__(self, options: StatisticsEveryOptions) -> None:
        """Nothing is trained yet."""
        super().__init__(options)
        self._ready: dict[Cell, Result] = {}

    def cells(self) -> list[Cell]:
        """Statistics in every step always come first; schedules of one rule stand together."""
        asked = {REFERENCE, *self.options.schedules}
        names = [name for name in SCHEDULES if name in asked]
        return [Cell(problem, name) for problem in self.options.problems for name in names]

    def content(self, cell: Cell) -> dict[str, Any]:
        """The schedule counts by its steps, rows and smoothing."""
        problem, steps = PROBLEMS[cell.problem], self.steps(cell.problem)
        return {
            **problem._asdict(),
            "steps": steps,
            "rule": str(self._rule(cell)),
            "taken": np.flatnonzero(SCHEDULES[cell.schedule].mask(steps)).tolist(),
            "rates": list(rates(cell.problem)),
            "momentum": MOMENTUM,
        }

    def steps(self, problem: str) -> int:
        """Of a run."""
        return self.options.steps or LONGER * PROBLEMS[problem].steps

    def train(self, cell: Cell) -> Result:
        """At every rate; with it, in one program, all schedules of the same rows and smoothing."""
        if cell not in self._ready:
            self._ready = self._train_alike(cell)
        return self._ready.pop(cell)

    def _train_alike(self, cell: Cell) -> dict[Cell, Result]:
        problem, rule = PROBLEMS[cell.problem], self._rule(cell)
        cells = [
            other
            for other in self.cells()
            if other.problem == cell.problem and self._rule(other) == rule
            if other not in self.results
        ]
        cells = cells[: self.options.parallel_schedules or len(cells)]
        steps, indices = self.steps(cell.problem), rates(cell.problem)
        schedules = [SCHEDULES[other.schedule] for other in cells]
        train = self.trainer((cell.problem, rule), lambda: self._make(cell))
        runs = train(
            Knobs(
                rate=np.tile([rate_of(index) for index in indices], len(cells)),
                taken=np.repeat([schedule.mask(steps) for schedule in schedules], len(indices), 0),
            )
        )
        losses = final_losses(runs, problem.batch_size).reshape(len(cells), len(indices), -1)
        return {
            other: Result(other, dict(zip(indices, of.tolist(), strict=True)))
            for other, of in zip(cells, losses, strict=True)
        }

    def _rule(self, cell: Cell) -> jaxnorm.Rule:
        """The default; in which steps statistics are taken the masks say."""
        problem, schedule = PROBLEMS[cell.problem], SCHEDULES[cell.schedule]
        # Of a sequence each element is a row.
        each = LENGTH if isinstance(TASKS[problem.task], Language) else 1
        part = schedule.part
        rows = None if part == 1 else max(1, problem.batch_size * each // part)
        return jaxnorm.Rule(
            statistics_rows=rows,
            smoothing=schedule.smoothing,
            statistics_dtype=schedule.dtype,
        )

    def _make(self, cell: Cell) -> Trainer:
        problem = PROBLEMS[cell.problem]
        workload = self.workload(problem.task)
        network = TASKS[problem.task].network(self._rule(cell), workload.outputs)
        optimizer = partial(make_optimizer, problem.optimizer, MOMENTUM)
        sizes = self.options.seeds, self.steps(cell.problem), problem.batch_size
        return Trainer(network, workload, optimizer, *sizes)

    def tables(self, results: list[Result]) -> list[Table]:
        """What comes of each schedule over all problems; then a table for each problem."""
        verdicts = judge(results)
        problems, schedules = grouped(results, "problem"), grouped(results, "schedule")
        rows = []
        for name, group in schedules.items():
            found = [verdicts[result.cell] for result in group]
            units = [verdicts[result.cell._replace(schedule=REFERENCE)] for result in group]
            safe = sum(v.is_as_safe_as(unit) for v, unit in zip(found, units, strict=True))
            rows.append(
                [
                    SCHEDULES[name].title,
                    f"{sum(v.as_good for v in found)} of {len(found)}",
                    f"{safe} of {len(found)}",
                    f"{max(v.ratio for v in found):.3f}",
                    f"{np.mean([v.ratio for v in found]):.3f}",
                ]
            )
        headings = ["schedule", "as good", "as large a safe rate", "worst ratio", "mean ratio"]
        return [
            Table(headings, rows),
            *(self._table(name, group, verdicts) for name, group in problems.items()),
        ]

    def _table(self, name: str, group: list[Result], verdicts: dict[Cell, Verdict]) -> Table:
        """Schedules down, rates across."""
        steps = self.steps(name)
        indices = sorted(group[0].finals)
        shown = [f"{rate_of(index):.2g}" for index in indices]
        headings = [f"{heading(name)}, {steps} steps", "steps with statistics", "cost", "ratio"]
        rows = []
        for result in group:
            verdict, schedule = verdicts[result.cell], SCHEDULES[result.cell.schedule]
            safe = "none" if verdict.safe is None else f"{rate_of(verdict.safe):.2g}"
            ratio = "diverged"
            if math.isfinite(verdict.ratio):
                ratio = f"{verdict.ratio:.3f} ± {verdict.error:.3f}"
            rows.append(
                [
                    schedule.title,
                    f"{schedule.mask(steps).mean():.0%}",
                    f"{schedule.cost(steps):.1%}",
                    ratio,
                    "yes" if verdict.as_good else "no",
                    safe,
                    *_losses(result.finals, indices),
                ]
            )
        return Table([*headings, "as good", "largest safe rate", *shown], rows)

    def draw(self, results: list[Result]) -> Figure:
        """The quality against the cost: a panel for each problem, a line for each way to save."""
        verdicts = judge(results)
        groups = grouped(results, "problem")
        columns = min(3, len(groups))
        rows = -(-len(groups) // columns)
        figure = Figure(figsize=(max(7.5, 4.2 * columns), 3.6 * rows + 1.2), layout="constrained")
        seeds = "1 seed" if self.options.seeds == 1 else f"{self.options.seeds} seeds"
        title = "Lines, from the right: at most every 4th, 8th, 16th, 32nd, 64th step; "
        title += "every step, 16th; all, a quarter, a sixteenth of the rows"
        figure.suptitle(f"{title}\nbars: standard error over {seeds}; gray: 1 %", fontsize=10)
        panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
        for axes, (problem, group) in zip(panels, groups.items(), strict=False):
            axes.axhspan(1 - TOLERANCE, 1 + TOLERANCE, color="#eeeeee", zorder=0)
            known = {result.cell.schedule: verdicts[result.cell] for result in group}
            for label, (names, look) in FAMILIES.items():
                points = [
                    (
                        SCHEDULES[name].cost(self.steps(problem)),
                        known[name].ratio,
                        known[name].error,
                    )
                    for name in names
                    if name in known and math.isfinite(known[name].ratio)
                ]
                x, y, error = zip(*points, strict=True) if points else ((), (), ())
                axes.errorbar(x, y, yerr=error, label=label, capsize=2.5, elinewidth=1, **look)
            axes.set_xscale("log")
            axes.set_xticks(TICKS, [f"{tick:.0%}" for tick in TICKS])
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_title(heading(problem), fontsize=9)
        for axes in figure.axes[len(groups) :]:
            axes.set_axis_off()
        for axes in figure.axes[-columns:]:
            axes.set_xlabel("share of all rows of all steps\nthat the statistics are taken over")
        figure.supylabel("final loss, every step = 1; each at its best rate", size=9)
        legend_below(figure, figure.axes[0], columns=3)
        return figure


TICKS = (0.01, 0.03, 0.1, 0.3, 1)
FAMILIES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "larger intervals, smoothing 0.5": (
        ("at_most_4", "at_most_8", "default", "at_most_32", "at_most_64"),
        {"color": "#D55E00", "marker": "o"},
    ),
    "no smoothing": (
        ("every_step", "unsmoothed"),
        {"color": "#0072B2", "marker": "s", "linestyle": "--"},
    ),
    "smoothing 0.8": (("smoothing_8",), {"color": "#009E73", "marker": "D", "linestyle": "none"}),
    "every 16th from the start on": (
        ("no_dense_start",),
        {"color": "#555555", "marker": "x", "linestyle": "none"},
    ),
    "fewer rows": (
        ("default", "rows_4", "rows_16"),
        {"color": "#CC79A7", "marker": "<", "linestyle": ":"},
    ),
    "kept in bfloat16": (
        ("bfloat16",),
        {"color": "#56B4E9", "marker": "*", "markersize": 10, "linestyle": "none"},
    ),
}
"""What is joined by a line, and how it is drawn."""


def rates(problem: str) -> range:
    """The upper part of the problem's grid, with those between."""
    highest = PROBLEMS[problem].rates[-1]
    return range(highest - BELOW, highest + ABOVE + 1)


def judge(results: list[Result]) -> dict[Cell, Verdict]:
    """Every schedule held against statistics in every step."""
    finals = {result.cell: result.finals for result in results}
    return {
        cell: verdict(found, finals[cell._replace(schedule=REFERENCE)])
        for cell, found in finals.items()
    }


def verdict(finals: Finals, reference: Finals) -> Verdict:
    """See `Verdict`."""
    best, unit = best_index(finals), best_index(reference)
    if best is None or unit is None:
        return Verdict(math.inf, 0.0, None)
    ratios = np.array(finals[best]) / np.array(reference[unit])
    error = ratios.std(ddof=1) / math.sqrt(len(ratios)) if len(ratios) > 1 else 0.0
    return Verdict(float(ratios.mean()), float(error), safe_index(finals, reference))


def safe_index(finals: Finals, reference: Finals) -> int | None:
    """The largest rate up to which, from the best one on, the loss stays below `SLACK`.

    Args:
        finals: of a schedule.
        reference: of statistics in every step, whose best loss is the unit.
    """
    limit = SLACK * min(mean_loss(reference, index) for index in reference)
    best, safe = best_index(finals), None
    for index in sorted(finals):
        if best is None or index < best:
            continue
        if not mean_loss(finals, index) < limit:
            break
        safe = index
    return safe


def _losses(finals: Finals, indices: list[int]) -> list[str]:
    """A cell for each rate."""
    best = best_index(finals)
    cells = []
    for index in indices:
        loss = mean_loss(finals, index)
        text = f"{loss:.3g}" if math.isfinite(loss) else "diverged"
        cells.append(f"**{text}**" if index == best else text)
    return cells
