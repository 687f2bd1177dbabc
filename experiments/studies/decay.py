"""Small batches: which `decay` of the tracked statistics is right for which batch size."""

import csv
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optax
from matplotlib.figure import Figure
from rich.console import Console

import jaxnorm
from experiments.errors import DataError
from experiments.records.files import write_text
from experiments.report.drawing import log_scale
from experiments.studies.search import (
    TASKS,
    Finals,
    Setting,
    best_index,
    index_of,
    markdown_table,
    mean_loss,
    rate_of,
    search,
    sgd,
    trainer,
)
from experiments.studies.study import begin, publish

STEPS = {1: 2400, 4: 1200, 16: 600, 64: 300, 256: 150}
"""Batch size -> steps: a batch four times as large has half the steps, so twice the samples."""

DECAYS = (0.0, 0.9, 0.99, 0.999)
JUDGED = 2048
INNER: dict[str, Callable[[Any], optax.GradientTransformation]] = {"sgd": sgd, "adam": optax.adam}
TITLES = {"sgd": "SGD with momentum", "adam": "Adam"}
# Where the search for the best rate begins, for batches of 256, and with which power of the batch
# size it falls.
GUESSES = {"sgd": (0.01, 0.75), "adam": (0.003, 0.25)}
PLAIN_GUESSES = {"sgd": (0.1, 0.5), "adam": (0.001, 0.25)}


class Cell(NamedTuple):
    """A line of the results.

    Attributes:
        inner: name of the optimizer.
        batch_size: samples in a step.
        decay: of the statistics; None: the plain network.
        finals: final training loss at each rate.
    """

    inner: str
    batch_size: int
    decay: float | None
    finals: Finals

    @property
    def loss(self) -> float:
        """Mean final loss at the best rate."""
        best = best_index(self.finals)
        return float("inf") if best is None else mean_loss(self.finals, best)


def measure(
    batch_sizes: tuple[int, ...],
    inners: tuple[str, ...],
    seeds: int,
    data_dir: Path | None,
    console: Console,
    cells: list[Cell],
    keep: Callable[[], None],
) -> None:
    """Train everything, each at every rate that its search tries.

    Args:
        batch_sizes: see `run`, as the next three.
        inners: as batch_sizes.
        seeds: as batch_sizes.
        data_dir: as batch_sizes.
        console: where to print.
        cells: what has been found before, and is not trained again; the results are added.
        keep: called after each result.
    """
    task = TASKS["mlp"]
    workload = task.load(data_dir)
    before = {cell[:3] for cell in cells}
    for batch_size in batch_sizes:
        for inner in inners:
            for decays in (None, DECAYS):
                rule = jaxnorm.Rule(gradient="plain") if decays is None else jaxnorm.Rule()
                network = task.network(rule, workload.outputs)
                setting = Setting(
                    workload, network, batch_size, STEPS[batch_size], INNER[inner], JUDGED
                )
                train = trainer(setting, seeds)
                for decay in decays or (None,):
                    if batch_size == 1 and decay == 0:
                        continue  # a single sample is its own mean: refused
                    if (inner, batch_size, decay) in before:
                        continue
                    begin = time.perf_counter()
                    guess, power = (PLAIN_GUESSES if decay is None else GUESSES)[inner]
                    finals = search(
                        lambda rates, train=train, decay=decay: train(
                            rates, np.full(len(rates), decay or 0)
                        ),
                        guess * (batch_size / 256) ** power,
                        portion=4,
                        stride=2,
                    )
                    cells.append(Cell(inner, batch_size, decay, finals))
                    keep()
                    seconds = time.perf_counter() - begin
                    best = best_index(finals)
                    shown = "diverged" if best is None else f"rate {rate_of(best):.2g}"
                    console.print(
                        f"{inner}, batch {batch_size}, decay {decay}: {shown}, "
                        f"loss {cells[-1].loss:.4g}; {seconds:.0f} s",
                        highlight=False,
                    )


def run(
    batch_sizes: tuple[int, ...],
    inners: tuple[str, ...],
    seeds: int,
    data_dir: Path | None,
    out: Path,
    console: Console | None = None,
) -> int:
    """Train, print the table, write ``small_batches.md``, ``.csv`` and ``.png``.

    The CSV is written after each result; what it holds already is not trained again.

    Args:
        batch_sizes: which.
        inners: names of optimizers.
        seeds: of each run.
        data_dir: see `compare`.
        out: folder for the results.
        console: where to print; None: the terminal.
    """
    console = begin(out, console)
    file = out / "small_batches.csv"
    cells = read(file) if file.exists() else []
    measure(
        batch_sizes,
        inners,
        seeds,
        data_dir,
        console,
        cells,
        lambda: write_text(file, comma_separated(cells)),
    )
    cells = [
        cell
        for inner in inners
        for cell in sorted(cells, key=lambda cell: (cell.batch_size, _rank(cell.decay)))
        if cell.inner == inner and cell.batch_size in batch_sizes
    ]
    publish(out / "small_batches", tables(cells), lambda: draw(cells), console)
    return 0


def tables(cells: list[Cell]) -> str:
    """A table for each optimizer: final loss and best rate, batch sizes down, decays across."""
    parts = []
    for inner in dict.fromkeys(cell.inner for cell in cells):
        own = [cell for cell in cells if cell.inner == inner]
        decays = list(dict.fromkeys(cell.decay for cell in own))
        headings = [TITLES[inner], "steps", *map(_name, decays)]
        rows = []
        for batch_size in dict.fromkeys(cell.batch_size for cell in own):
            row = {c.decay: c for c in own if c.batch_size == batch_size}
            least = min(cell.loss for cell in row.values())
            shown = [_show(row.get(decay), least) for decay in decays]
            rows.append([f"batch {batch_size}", str(STEPS.get(batch_size, "")), *shown])
        parts.append(markdown_table(headings, rows))
    return "\n".join(parts)


def _rank(decay: float | None) -> float:
    """The plain network first."""
    return -1.0 if decay is None else decay


def _name(decay: float | None) -> str:
    return "plain" if decay is None else f"decay {decay:g}"


def _show(cell: Cell | None, least: float) -> str:
    if cell is None:
        return "refused"
    best = best_index(cell.finals)
    if best is None:
        return "diverged"
    text = f"{cell.loss:.3f}"
    return f"{f'**{text}**' if cell.loss == least else text} ({rate_of(best):.2g})"


def comma_separated(cells: list[Cell]) -> str:
    """A line for every run."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["inner", "batch_size", "decay", "rate", "seed", "final_train_loss"])
    for cell in cells:
        for index, losses in cell.finals.items():
            for seed, loss in enumerate(losses):
                decay = "plain" if cell.decay is None else cell.decay
                rate = f"{rate_of(index):.4g}"
                writer.writerow([cell.inner, cell.batch_size, decay, rate, seed, f"{loss:.5g}"])
    return file.getvalue()


def read(path: Path) -> list[Cell]:
    """What `comma_separated` wrote.

    Raises:
        DataError: for a file that is damaged.
    """
    cells: dict[tuple[str, int, float | None], Finals] = {}
    try:
        for line in csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))):
            decay = None if line["decay"] == "plain" else float(line["decay"])
            finals = cells.setdefault((line["inner"], int(line["batch_size"]), decay), {})
            losses = finals.setdefault(index_of(float(line["rate"])), [])
            losses.append(float(line["final_train_loss"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: damaged ({error}); remove it to begin anew") from error
    return [Cell(*key, finals) for key, finals in cells.items()]


COLORS = {None: "#555555", 0.0: "#D55E00", 0.9: "#CC79A7", 0.99: "#0072B2", 0.999: "#009E73"}
MARKERS = {None: "s", 0.0: "v", 0.9: "D", 0.99: "o", 0.999: "^"}


def draw(cells: list[Cell]) -> Figure:
    """Final loss at the best rate against the batch size; a panel for each optimizer."""
    inners = list(dict.fromkeys(cell.inner for cell in cells))
    figure = Figure(figsize=(4.6 * len(inners), 4.2), layout="constrained")
    figure.suptitle("Fashion-MNIST, 3 x 128: which decay for which batch size", fontsize=10)
    panels = figure.subplots(1, len(inners), sharey=True, squeeze=False)[0]
    for axes, inner in zip(panels, inners, strict=True):
        own = [cell for cell in cells if cell.inner == inner]
        sizes = sorted({cell.batch_size for cell in own})
        for decay in dict.fromkeys(cell.decay for cell in own):
            line = [(c.batch_size, c.loss) for c in own if c.decay == decay]
            axes.plot(
                *zip(*sorted(line), strict=True),
                color=COLORS[decay],
                marker=MARKERS[decay],
                linestyle=(0, (1, 1)) if decay is None else "-",
                label=_name(decay),
            )
        axes.set_xscale("log")
        axes.set_xticks(sizes, [f"{size}\n{STEPS.get(size, '')} steps" for size in sizes])
        axes.minorticks_off()
        axes.set_xlabel("batch size")
        axes.set_title(TITLES[inner])
        log_scale(axes, np.array([cell.loss for cell in cells]))
    panels[0].set_ylabel("final training loss, at the best rate")
    panels[0].legend(frameon=False)
    return figure
