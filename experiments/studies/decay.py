"""Which ``decay`` of the tracked statistics is right for which batch size, down to one sample."""

from functools import partial
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

import jaxnorm
from experiments.report.drawing import log_scale
from experiments.report.tables import Table
from experiments.studies.grid import best_index, rate_of, search
from experiments.studies.options import DecayOptions
from experiments.studies.study import Result, Study, grouped
from experiments.studies.tasks import MOMENTUM, TASKS, final_losses
from experiments.training.method import make_optimizer
from experiments.training.trainer import Judge, Knobs, Trainer
from experiments.workloads import Samples

TASK = "mlp"
STEPS = {1: 2400, 4: 1200, 16: 600, 64: 300, 256: 150}
"""Batch size -> steps: a batch four times as large has half the steps, so twice the samples."""

DECAYS = (0.0, 0.9, 0.99, 0.999)
JUDGED = 2048
"""The final loss is that of so many training samples, always the same."""

RULE = jaxnorm.Rule(step_size="standardized", statistics_every=1)
"""Of every batch, as is the default where there is a decay; whose best rates the guesses are."""

TITLES = {"sgd": "SGD with momentum", "adam": "Adam"}
# Where the search for the best rate begins, for batches of 256, and with which power of the batch
# size it falls.
GUESSES = {"sgd": (0.01, 0.75), "adam": (0.003, 0.25)}
PLAIN_GUESSES = {"sgd": (0.1, 0.5), "adam": (0.001, 0.25)}


class Cell(NamedTuple):
    """An optimizer, a batch size and a decay; None: the plain network."""

    optimizer: str
    batch_size: int
    decay: float | None


class Decay(Study):
    """The final loss under each decay, at its best rate."""

    name = "decay"
    options: DecayOptions

    def cells(self) -> list[Cell]:
        """With a single sample, decay 0 is refused: it is its own mean."""
        return [
            Cell(optimizer, batch_size, decay)
            for batch_size in self.options.batch_sizes
            for optimizer in self.options.optimizers
            for decay in (None, *DECAYS)
            if (batch_size, decay) != (1, 0)
        ]

    def content(self, cell: Cell) -> dict[str, Any]:
        """The options, and what the final loss is taken of."""
        sizes = {"steps": STEPS[cell.batch_size], "judged": JUDGED, "momentum": MOMENTUM}
        return {"task": TASK, **cell._asdict(), **sizes}

    def train(self, cell: Cell) -> Result:
        """Search from a guess that falls with the batch size."""
        train = self.trainer((*cell[:2], cell.decay is None), lambda: self._make(cell))
        guess, power = (PLAIN_GUESSES if cell.decay is None else GUESSES)[cell.optimizer]

        def losses(rates: list[float]) -> np.ndarray:
            decays = None if cell.decay is None else np.full(len(rates), cell.decay)
            return final_losses(train(Knobs(rates, decays)), cell.batch_size)

        guess *= (cell.batch_size / 256) ** power
        return Result(cell, search(losses, guess, portion=4, stride=2))

    def _make(self, cell: Cell) -> Trainer:
        workload = self.workload(TASK)
        rule = jaxnorm.PLAIN if cell.decay is None else RULE
        network = TASKS[TASK].network(rule, workload.outputs)
        samples = Samples(workload.train.inputs[:JUDGED], workload.train.targets[:JUDGED])
        optimizer = partial(make_optimizer, cell.optimizer, MOMENTUM)
        sizes = self.options.seeds, STEPS[cell.batch_size], cell.batch_size
        return Trainer(network, workload, optimizer, *sizes, Judge(samples, workload.loss))

    def tables(self, results: list[Result]) -> list[Table]:
        """A table for each optimizer: loss and best rate, batch sizes down, decays across."""
        tables = []
        for optimizer, group in grouped(results, "optimizer").items():
            found = {result.cell.decay for result in group}
            decays = [decay for decay in (None, *DECAYS) if decay in found]
            rows = []
            for size in dict.fromkeys(result.cell.batch_size for result in group):
                row = {r.cell.decay: r for r in group if r.cell.batch_size == size}
                least = min(result.loss for result in row.values())
                shown = [_show(row.get(decay), least) for decay in decays]
                rows.append([f"batch {size}", str(STEPS[size]), *shown])
            tables.append(Table([TITLES[optimizer], "steps", *map(_name, decays)], rows))
        return tables

    def draw(self, results: list[Result]) -> Figure:
        """Final loss at the best rate against the batch size; a panel for each optimizer."""
        groups = grouped(results, "optimizer")
        figure = Figure(figsize=(4.6 * len(groups), 4.2), layout="constrained")
        figure.suptitle("Fashion-MNIST, 3 x 128: which decay for which batch size", fontsize=10)
        panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
        for axes, (optimizer, group) in zip(panels, groups.items(), strict=True):
            sizes = sorted({result.cell.batch_size for result in group})
            for decay in dict.fromkeys(result.cell.decay for result in group):
                line = [(r.cell.batch_size, r.loss) for r in group if r.cell.decay == decay]
                axes.plot(
                    *zip(*sorted(line), strict=True),
                    color=COLORS[decay],
                    marker=MARKERS[decay],
                    linestyle=(0, (1, 1)) if decay is None else "-",
                    label=_name(decay),
                )
            axes.set_xscale("log")
            axes.set_xticks(sizes, [f"{size}\n{STEPS[size]} steps" for size in sizes])
            axes.minorticks_off()
            axes.set_xlabel("batch size")
            axes.set_title(TITLES[optimizer])
            log_scale(axes, np.array([result.loss for result in results]))
        panels[0].set_ylabel("final training loss, at the best rate")
        panels[0].legend(frameon=False)
        return figure


COLORS = {None: "#555555", 0.0: "#D55E00", 0.9: "#CC79A7", 0.99: "#0072B2", 0.999: "#009E73"}
MARKERS = {None: "s", 0.0: "v", 0.9: "D", 0.99: "o", 0.999: "^"}


def _name(decay: float | None) -> str:
    return "plain" if decay is None else f"decay {decay:g}"


def _show(result: Result | None, least: float) -> str:
    if result is None:
        return "refused"
    best = best_index(result.finals)
    if best is None:
        return "diverged"
    text = f"{result.loss:.3f}"
    return f"{f'**{text}**' if result.loss == least else text} ({rate_of(best):.2g})"
