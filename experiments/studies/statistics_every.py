"""Statistics in some of the steps only: which schedules are safe at which rates."""

from collections.abc import Callable
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure

import jaxnorm
from experiments.options import StatisticsEveryOptions
from experiments.report.drawing import legend_below, log_scale
from experiments.report.tables import Table
from experiments.studies.grid import Finals, best_index, curve, index_of, mean_loss, rate_of
from experiments.studies.study import Result, Study, grouped
from experiments.studies.tasks import TASKS, final_losses, sgd
from experiments.training.trainer import Knobs, Trainer

BATCH_SIZE = 256
STEPS = {"photo": 400, "mlp": 300, "convnet": 300}
RATES = range(index_of(0.003), index_of(0.1) + 1)
"""The rates that are tried, by their indices; they are those of this rule:"""

RULE = jaxnorm.Rule(step_size="standardized")


class Schedule(NamedTuple):
    """In which steps statistics are taken.

    Attributes:
        name: as in the table.
        takes: step -> whether.
        decay: see `jaxnorm.Rule`.
    """

    name: str
    takes: Callable[[int], bool]
    decay: float = 0.0

    def mask(self, steps: int) -> np.ndarray:
        """Whether, at each step."""
        return np.array([self.takes(step) for step in range(steps)])


def every(interval: int, warm_up: int, decay: float = 0.0) -> Schedule:
    """What `jaxnorm.Rule` does with ``statistics_every=interval`` and a warm-up."""
    name = f"every {interval}"
    if interval > 1:
        name += f", warm-up {warm_up}" if warm_up else ", no warm-up"
    if decay:
        name += f", decay {decay:g}"
    return Schedule(name, lambda step: step < warm_up or step % interval == 0, decay)


def growing(share: int, most: int) -> Schedule:
    """An interval that grows with the steps made: 1 in the first `share`, then step / share."""

    def taken(step: int) -> bool:
        at = interval = 0
        while at < step:
            interval = min(most, max(1, at // share))
            at += interval
        return at == step

    return Schedule(f"interval step / {share}, at most {most}", taken)


SCHEDULES = {
    schedule.name: schedule
    for schedule in (
        every(1, 0),
        *(every(interval, 0) for interval in (4, 8, 16)),
        *(every(interval, 100) for interval in (4, 8, 16)),
        *(every(interval, 200) for interval in (4, 16)),
        every(4, 0, decay=0.5),
        growing(10, 16),
        growing(25, 16),
    )
}
"""The first one is what the others are held against."""


class Cell(NamedTuple):
    """A network and a name in `SCHEDULES`."""

    task: str
    schedule: str


class StatisticsEvery(Study):
    """The final loss at each rate under each schedule."""

    name = "statistics_every"
    options: StatisticsEveryOptions

    def cells(self) -> list[Cell]:
        """All schedules of a network are trained by one program."""
        return [Cell(task, schedule) for task in self.options.tasks for schedule in SCHEDULES]

    def content(self, cell: Cell) -> dict[str, Any]:
        """The schedule counts by its steps."""
        schedule, steps = SCHEDULES[cell.schedule], STEPS[cell.task]
        return {
            "task": cell.task,
            "batch_size": BATCH_SIZE,
            "steps": steps,
            "taken": np.flatnonzero(schedule.mask(steps)).tolist(),
            "decay": schedule.decay,
            "rates": list(RATES),
        }

    def train(self, cell: Cell) -> Result:
        """At every rate."""
        train = self.trainer(cell.task, lambda: self._make(cell.task))
        schedule, count = SCHEDULES[cell.schedule], len(RATES)
        mask = np.tile(schedule.mask(STEPS[cell.task]), (count, 1))
        rates = [rate_of(index) for index in RATES]
        runs = train(Knobs(rates, np.full(count, schedule.decay), mask))
        losses = final_losses(runs, BATCH_SIZE)
        return Result(cell, dict(zip(RATES, losses.tolist(), strict=True)))

    def _make(self, task: str) -> Trainer:
        workload = self.workload(task)
        network = TASKS[task].network(RULE, workload.outputs)
        return Trainer(network, workload, sgd, self.options.seeds, STEPS[task], BATCH_SIZE)

    def tables(self, results: list[Result]) -> list[Table]:
        """A table for each network: schedules down, rates across."""
        tables = []
        for task, group in grouped(results, "task").items():
            reference = group[0].finals
            headings = [TASKS[task].title, "steps with statistics", "largest safe rate"]
            headings += [f"{rate_of(index):.2g}" for index in reference]
            rows = []
            for (_, name), finals, _ in group:
                share = SCHEDULES[name].mask(STEPS[task]).mean()
                safe = safe_index(finals, reference)
                shown = "none" if safe is None else f"{rate_of(safe):.2g}"
                rows.append([name, f"{share:.0%}", shown, *_row(finals, reference)])
            tables.append(Table(headings, rows))
        return tables

    def draw(self, results: list[Result]) -> Figure:
        """Final loss against the rate; a panel for each network."""
        groups = grouped(results, "task")
        figure = Figure(figsize=(5 * len(groups), 5.6), layout="constrained")
        title = f"Statistics in some of the steps only, batches of {BATCH_SIZE}"
        figure.suptitle(title, fontsize=10)
        panels = figure.subplots(1, len(groups), squeeze=False)[0]
        markers = "ovDs^Pv<>X*hd"
        colors = matplotlib.colormaps["tab20"].colors  # type: ignore[attr-defined]
        for axes, (task, group) in zip(panels, groups.items(), strict=True):
            for number, ((_, name), finals, _) in enumerate(group):
                axes.plot(
                    *curve(finals),
                    color=colors[number % len(colors)] if number else "black",
                    linewidth=1.2 if number else 2.4,
                    linestyle="--" if "no warm-up" in name else "-",
                    marker=markers[number % len(markers)],
                    markersize=4,
                    label=name,
                )
            axes.set_xscale("log")
            axes.set_xticks(*zip(*[(r := rate_of(i), f"{r:.2g}") for i in RATES], strict=True))
            axes.minorticks_off()
            axes.set_xlabel("learning rate (a line ends where it diverges)")
            axes.set_title(TASKS[task].title)
            log_scale(axes, np.array([mean_loss(r.finals, i) for r in group for i in r.finals]))
        panels[0].set_ylabel("final training loss")
        legend_below(figure, panels[0], columns=3, fontsize=8)
        return figure


def safe_index(finals: Finals, reference: Finals) -> int | None:
    """The largest rate up to which the loss is within a tenth of that with fresh statistics."""
    safe = None
    for index in finals:
        loss = mean_loss(finals, index)
        if not (np.isfinite(loss) and loss <= 1.1 * mean_loss(reference, index)):
            break
        safe = index
    return safe


def _row(finals: Finals, reference: Finals) -> list[str]:
    best = best_index(finals)
    cells = []
    for index in reference:
        loss = mean_loss(finals, index)
        text = f"{loss:.3g}" if np.isfinite(loss) else "diverged"
        cells.append(f"**{text}**" if index == best else text)
    return cells
