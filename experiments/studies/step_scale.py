"""Which ``step_scale`` lets one rate fit networks and batches of all kinds."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

import jaxnorm
from experiments.networks.convnet import SIDE
from experiments.options import StepScaleOptions
from experiments.report.drawing import legend_below
from experiments.report.tables import Table
from experiments.studies.grid import PER_DECADE, Finals, curve, mean_loss, rate_of, search
from experiments.studies.study import Result, Study, grouped
from experiments.studies.tasks import TASKS, Task, sgd
from experiments.training.trainer import Knobs, Trainer

STEPS = {32: 200, 128: 140, 256: 100, 1024: 60}
"""Batch size -> steps."""


class Form(NamedTuple):
    """One way to divide a layer's step, by ``constant + factor (1 + λ)``.

    Attributes:
        title: as in the table.
        guess: where the search for a best rate begins.
        divisor: (m, P, B) -> (constant, factor).
    """

    title: str
    guess: float
    divisor: Callable[[int, int, int], tuple[float, float]]


FORMS = {
    "none": Form("1", 0.015, lambda m, p, b: (1, 0)),
    "bnp": Form("max(m/N, 1)", 0.015, lambda m, p, b: (max(m / (b * p), 1), 0)),
    "fan_in": Form("(1+m) P", 2.0, lambda m, p, b: ((1 + m) * p, 0)),
    "eigenvalue": Form("(1+λ) P", 0.3, lambda m, p, b: (0, p)),
    "no_positions": Form("1+λ", 0.3, lambda m, p, b: (0, 1)),
    "noise": Form(
        "(1+λ+16 m/B) √P", 0.8, lambda m, p, b: (16 * m / b * math.sqrt(p), math.sqrt(p))
    ),
}
"""What is compared: m inputs of a neuron, P positions that share the kernel, B images, N = B P
samples, λ the largest eigenvalue of the correlation of the inputs. The first four are those of
`jaxnorm.Rule`."""


class Cell(NamedTuple):
    """A network, a batch size and a name in `FORMS`."""

    task: str
    batch_size: int
    form: str


class StepScale(Study):
    """The best rate of every network and batch size under each form: does one rate fit all?"""

    name = "step_scale"
    options: StepScaleOptions

    def cells(self) -> list[Cell]:
        """All forms of a network and batch size are trained by one program."""
        options = self.options
        return [
            Cell(task, batch_size, form)
            for task in options.tasks
            for batch_size in options.batch_sizes
            for form in options.forms
        ]

    def content(self, cell: Cell) -> dict[str, Any]:
        """The form counts by its divisors: two forms may have the same."""
        by = divisors(cell.form, TASKS[cell.task], cell.batch_size)
        sizes = {"batch_size": cell.batch_size, "steps": STEPS[cell.batch_size]}
        return {"task": cell.task, **sizes, "divisors": by}

    def train(self, cell: Cell) -> Finals:
        """Search from the best rate of the batch size before."""
        content = self.content(cell)
        train = self.trainer(cell[:2], lambda: self._make(cell))
        by, guess = content["divisors"], FORMS[cell.form].guess
        for earlier, result in self.results.items():
            if (earlier.task, earlier.form) == (cell.task, cell.form):
                guess = rate_of(result.best)
        return search(
            lambda rates: train(Knobs(rates, divisors=np.tile(by, (len(rates), 1, 1)))),
            guess,
            portion=5,
        )

    def _make(self, cell: Cell) -> Trainer:
        workload, steps = self.workload(cell.task), STEPS[cell.batch_size]
        # All forms are functions of the one eigenvalue.
        rule = jaxnorm.Rule(step_scale="eigenvalue")
        network = TASKS[cell.task].network(rule, workload.outputs)
        return Trainer(network, workload, sgd, self.options.seeds, steps, cell.batch_size)

    def tables(self, results: list[Result]) -> list[Table]:
        """Best rate (and final loss at it) of each cell, and what one rate for all would cost."""
        groups = grouped(results, "form")
        rows = []
        for task, batch_size in dict.fromkeys(result.cell[:2] for result in results):
            row = [r for r in results if r.cell[:2] == (task, batch_size)]
            least = min(r.loss for r in row)
            shown = [f"{rate_of(r.best):.2g} ({_bold(r.loss, least)})" for r in row]
            rows.append([f"{TASKS[task].title}, batch {batch_size}", *shown])
        found = {form: shared(group) for form, group in groups.items()}
        lines = {
            "largest best rate / smallest": lambda s: rate_of(s.high - s.low),
            "one rate for all, the middle one": lambda s: rate_of((s.low + s.high) / 2),
            "its worst factor to a best rate": lambda s: rate_of((s.high - s.low) / 2),
            "the kindest rate for all": lambda s: rate_of(s.kindest),
        }
        rows += [[name, *(f"{of(s):.2g}" for s in found.values())] for name, of in lines.items()]
        rows.append(["its worst final loss, best = 1", *(_ratio(s.excess) for s in found.values())])
        headings = [f"{form}: {FORMS[form].title}" for form in groups]
        return [Table(["best rate (final loss)", *headings], rows)]

    def draw(self, results: list[Result]) -> Figure:
        """Final loss, relative to the best one, against the rate; a panel for each form."""
        groups = grouped(results, "form")
        columns = min(3, len(groups))
        rows = -(-len(groups) // columns)
        figure = Figure(figsize=(4 * columns, 3.3 * rows + 1), layout="constrained")
        title = "SGD with momentum in the neurons' coordinates: a line for each network and batch"
        figure.suptitle(title, fontsize=10)
        panels = list(figure.subplots(rows, columns, sharey=True, squeeze=False).flat)
        for empty in panels[len(groups) :]:
            empty.set_axis_off()
        for axes, (form, group) in zip(panels, groups.items(), strict=False):
            for result in group:
                task, batch_size, _ = result.cell
                axes.plot(
                    *curve(result.finals, unit=result.loss),
                    color=COLORS[task],
                    marker=MARKERS.get(batch_size, "D"),
                    markersize=4,
                    linewidth=1,
                    label=f"{TASKS[task].title}, batch {batch_size}",
                )
            one = shared(group)
            axes.axvline(rate_of(one.kindest), color="black", linewidth=0.8)
            spread = f"best rates within a factor {rate_of(one.high - one.low):.2g}"
            axes.set_title(f"divided by {FORMS[form].title}\n{spread}")
            axes.set_xscale("log")
            middle = (one.low + one.high) / 2  # the same number of decades in every panel
            axes.set_xlim(rate_of(middle - 1.6 * PER_DECADE), rate_of(middle + 1.6 * PER_DECADE))
            axes.set_xlabel("learning rate")
        panels[0].set_yscale("log")
        panels[0].set_ylim(0.97, 2.5)
        panels[0].set_yticks([1, 1.2, 1.5, 2], ["1", "1.2", "1.5", "2"])
        panels[0].yaxis.set_minor_formatter(NullFormatter())
        for axes in panels[::columns]:
            axes.set_ylabel("final training loss, best = 1")
        heading = "vertical line: the kindest rate for all; a line ends where a seed diverged"
        legend_below(figure, panels[0], heading, columns=len(COLORS), fontsize=8)
        return figure


COLORS = {"photo": "#009E73", "mlp": "#0072B2", "convnet": "#D55E00"}
MARKERS = {32: "v", 128: "o", 256: "s", 1024: "^"}


class Shared(NamedTuple):
    """One rate for all networks and batch sizes; the first three are indices of the grid.

    Attributes:
        low: the smallest best rate.
        high: the largest.
        kindest: the rate with the smallest `excess`.
        excess: the largest ratio of the final loss at that rate to that at the best one; inf where
            it diverges.
    """

    low: int
    high: int
    kindest: int
    excess: float


def shared(results: list[Result]) -> Shared:
    """How well one rate would do for all these cells."""
    bests = [result.best for result in results]
    low, high = min(bests), max(bests)

    def excess(index: int) -> float:
        return max(mean_loss(result.finals, index) / result.loss for result in results)

    kindest = min(range(low, high + 1), key=excess)
    return Shared(low, high, kindest, excess(kindest))


def layers(task: Task) -> dict[str, tuple[int, int]]:
    """(m, P) of each layer by its name in the statistics."""
    found, channels, side = {}, 1, SIDE // 2
    for number, width in enumerate(task.channels):
        side = -(-side // 2)
        found[f"Conv_{number}"] = 9 * channels, side * side
        channels = width
    first = task.inputs if not task.channels else side * side * channels
    return found | {f"Dense_{n}": (m, 1) for n, m in enumerate((first, *task.widths))}


def divisors(form: str, task: Task, batch_size: int) -> list[tuple[float, float]]:
    """For each layer (c, f), in the order of `Knobs`: its step is divided by c + f (1 + λ) P."""
    found = []
    for _, (fan_in, positions) in sorted(layers(task).items()):
        constant, factor = FORMS[form].divisor(fan_in, positions, batch_size)
        found.append((float(constant), factor / positions))
    return found


def _bold(loss: float, least: float) -> str:
    return f"**{loss:.3g}**" if loss == least else f"{loss:.3g}"


def _ratio(excess: float) -> str:
    return f"{excess:.3g}" if np.isfinite(excess) else "diverges"
