"""Which `form` lets one rate fit networks and batches of all kinds."""

import csv
import io
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from rich.console import Console

import jaxnorm
from experiments.errors import DataError
from experiments.records.files import write_text
from experiments.studies.search import (
    PER_DECADE,
    SIDE,
    TASKS,
    Finals,
    Setting,
    Task,
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

STEPS = {32: 200, 128: 140, 256: 100, 1024: 60}
"""Batch size -> steps."""


class Layer(NamedTuple):
    """What a divisor may depend on, beside the largest eigenvalue.

    Attributes:
        fan_in: inputs of a neuron.
        positions: that share the kernel.
        images: samples in the minibatch, whose positions are not counted.
    """

    fan_in: int
    positions: int
    images: int


class Form(NamedTuple):
    """One way to divide a layer's step, by ``constant + factor (1 + λ)``.

    Attributes:
        title: as in the table.
        guess: where the search for a best rate begins.
        divisor: layer -> (constant, factor).
    """

    title: str
    guess: float
    divisor: Callable[[Layer], tuple[float, float]]


def _with_noise(layer: Layer) -> tuple[float, float]:
    root = math.sqrt(layer.positions)
    return NOISE * layer.fan_in / layer.images * root, root


NOISE = 16
FORMS = {
    "none": Form("1", 0.015, lambda layer: (1, 0)),
    "bnp": Form(
        "max(m/N, 1)",
        0.015,
        lambda layer: (max(layer.fan_in / (layer.images * layer.positions), 1), 0),
    ),
    "fan_in": Form("(1+m) P", 2.0, lambda layer: ((1 + layer.fan_in) * layer.positions, 0)),
    "eigenvalue": Form("(1+λ) P", 0.3, lambda layer: (0, layer.positions)),
    "no_positions": Form("1+λ", 0.3, lambda layer: (0, 1)),
    "noise": Form(f"(1+λ+{NOISE} m/B) √P", 0.8, _with_noise),
}
"""What is compared: m inputs of a neuron, P positions that share the kernel, B images, N = B P
samples, λ the largest eigenvalue of the correlation of the inputs. The first four are those of
`jaxnorm.Rule`."""


class Cell(NamedTuple):
    """What was found for one network, batch size and `form`.

    Attributes:
        task: name of the task.
        batch_size: samples in a step.
        form: its name in `FORMS`.
        finals: final training loss at each rate.
    """

    task: str
    batch_size: int
    form: str
    finals: Finals

    @property
    def best(self) -> int:
        """Index of the best rate."""
        best = best_index(self.finals)
        if best is None:
            raise ValueError(f"{self.task}, {self.batch_size}: got no rate that trains")
        return best

    @property
    def loss(self) -> float:
        """Mean final loss at the best rate."""
        return mean_loss(self.finals, self.best)


class Shared(NamedTuple):
    """One rate for all networks and batch sizes.

    Attributes:
        spread: the largest best rate over the smallest.
        rate: the one in their middle, on a log scale.
        regret: the largest ratio of it to a best rate, or the inverse.
        kindest: the rate of the grid with the smallest `excess`.
        excess: the largest ratio of the final loss at that rate to that at the best one; inf where
            it diverges.
    """

    spread: float
    rate: float
    regret: float
    kindest: float
    excess: float


def shared(cells: list[Cell]) -> Shared:
    """How well one rate would do for all these cells."""
    bests = [cell.best for cell in cells]
    low, high = min(bests), max(bests)

    def excess(index: int) -> float:
        return max(mean_loss(cell.finals, index) / cell.loss for cell in cells)

    kindest = min(range(low, high + 1), key=excess)
    return Shared(
        spread=rate_of(high - low),
        rate=rate_of((low + high) / 2),
        regret=rate_of((high - low) / 2),
        kindest=rate_of(kindest),
        excess=excess(kindest),
    )


def measure(
    tasks: tuple[str, ...],
    batch_sizes: tuple[int, ...],
    forms: tuple[str, ...],
    seeds: int,
    data_dir: Path | None,
    console: Console,
    cells: list[Cell],
    keep: Callable[[], None] = lambda: None,
) -> None:
    """Train everything, each at every rate that its search tries.

    Args:
        tasks: see `run`, as the next four.
        batch_sizes: as tasks.
        forms: as tasks.
        seeds: as tasks.
        data_dir: as tasks.
        console: where to print.
        cells: what has been found before, and is not trained again; the results are added.
        keep: called after each result.
    """
    for task in tasks:
        workload = TASKS[task].load(data_dir)
        guesses = {form: FORMS[form].guess for form in forms}
        # All forms are functions of the one eigenvalue, so one program trains them all.
        network = TASKS[task].network(jaxnorm.Rule(step_scale="eigenvalue"), workload.outputs)
        for batch_size in batch_sizes:
            train = trainer(Setting(workload, network, batch_size, STEPS[batch_size], sgd), seeds)
            seen: dict[tuple[tuple[float, float], ...], Finals] = {}
            for form in forms:
                begin = time.perf_counter()
                own = divisors(FORMS[form], layers(TASKS[task], batch_size))
                before = [c for c in cells if c[:3] == (task, batch_size, form)]
                if before:
                    seen[own] = before[0].finals
                elif own not in seen:
                    seen[own] = search(
                        lambda rates, train=train, own=own: train(
                            rates, divisors=np.tile(own, (len(rates), 1, 1))
                        ),
                        guesses[form],
                        portion=5,
                    )
                cell = Cell(task, batch_size, form, seen[own])
                guesses[form] = rate_of(cell.best)
                if not before:
                    cells.append(cell)
                    keep()
                console.print(
                    f"{task}, batch {batch_size}, {form}: best rate {rate_of(cell.best):.2g}, "
                    f"loss {cell.loss:.4g}; {time.perf_counter() - begin:.0f} s",
                    highlight=False,
                )


def layers(task: Task, batch_size: int) -> dict[str, Layer]:
    """The layers by their names in the statistics."""
    found, channels, side = {}, 1, SIDE // 2
    for number, width in enumerate(task.channels):
        side = -(-side // 2)
        found[f"Conv_{number}"] = Layer(9 * channels, side * side, batch_size)
        channels = width
    first = task.inputs if not task.channels else side * side * channels
    for number, width in enumerate((first, *task.widths)):
        found[f"Dense_{number}"] = Layer(width, 1, batch_size)
    return found


def divisors(form: Form, layers: dict[str, Layer]) -> tuple[tuple[float, float], ...]:
    """For each layer (c, f): its step is divided by c + f d, with d = (1 + λ) P.

    In the order of the layers' names, as `trainer` takes them.
    """
    result = []
    for _, layer in sorted(layers.items()):
        constant, factor = form.divisor(layer)
        result.append((float(constant), factor / layer.positions))
    return tuple(result)


def run(
    tasks: tuple[str, ...],
    batch_sizes: tuple[int, ...],
    forms: tuple[str, ...],
    seeds: int,
    data_dir: Path | None,
    out: Path,
    console: Console | None = None,
) -> int:
    """Train, print the tables, write ``rates.md``, ``.csv`` and ``.png``.

    The CSV is written after each result; what it holds already is not trained again.

    Args:
        tasks: names of tasks.
        batch_sizes: which.
        forms: names in `FORMS`.
        seeds: of each run.
        data_dir: see `compare`.
        out: folder for the results.
        console: where to print; None: the terminal.
    """
    console = begin(out, console)
    file = out / "rates.csv"
    cells = read(file) if file.exists() else []
    measure(
        tasks,
        batch_sizes,
        forms,
        seeds,
        data_dir,
        console,
        cells,
        lambda: write_text(file, comma_separated(cells)),
    )
    cells = [
        cell
        for task in tasks
        for batch_size in batch_sizes
        for form in forms
        for cell in cells
        if cell[:3] == (task, batch_size, form)
    ]
    publish(out / "rates", tables(cells), lambda: draw(cells), console)
    return 0


def by_form(cells: list[Cell]) -> dict[str, list[Cell]]:
    """The cells of each `form`."""
    forms = dict.fromkeys(cell.form for cell in cells)
    return {form: [cell for cell in cells if cell.form == form] for form in forms}


def tables(cells: list[Cell]) -> str:
    """Best rate (and final loss at it) of each cell, and what one rate for all would cost."""
    groups = by_form(cells)
    columns = list(dict.fromkeys((cell.task, cell.batch_size) for cell in cells))
    rows = []
    for task, batch_size in columns:
        row = [c for c in cells if (c.task, c.batch_size) == (task, batch_size)]
        least = min(cell.loss for cell in row)
        shown = [f"{rate_of(c.best):.2g} ({_bold(c.loss, least)})" for c in row]
        rows.append([f"{TASKS[task].title}, batch {batch_size}", *shown])
    found = {form: shared(group) for form, group in groups.items()}
    rows += [
        ["largest best rate / smallest", *(f"{s.spread:.2g}" for s in found.values())],
        ["one rate for all, the middle one", *(f"{s.rate:.2g}" for s in found.values())],
        ["its worst factor to a best rate", *(f"{s.regret:.2g}" for s in found.values())],
        ["the kindest rate for all", *(f"{s.kindest:.2g}" for s in found.values())],
        ["its worst final loss, best = 1", *(_ratio(s.excess) for s in found.values())],
    ]
    headings = [f"{form}: {FORMS[form].title}" for form in groups]
    return markdown_table(["best rate (final loss)", *headings], rows)


def _bold(loss: float, least: float) -> str:
    return f"**{loss:.3g}**" if loss == least else f"{loss:.3g}"


def _ratio(excess: float) -> str:
    return f"{excess:.3g}" if np.isfinite(excess) else "diverges"


def comma_separated(cells: list[Cell]) -> str:
    """A line for every run."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["task", "batch_size", "form", "rate", "seed", "final_train_loss"])
    for cell in cells:
        for index, losses in cell.finals.items():
            for seed, loss in enumerate(losses):
                line = [cell.task, cell.batch_size, cell.form, f"{rate_of(index):.4g}", seed]
                writer.writerow([*line, f"{loss:.5g}"])
    return file.getvalue()


def read(path: Path) -> list[Cell]:
    """What `comma_separated` wrote.

    Raises:
        DataError: for a file that is damaged.
    """
    cells: dict[tuple[str, int, str], Finals] = {}
    try:
        for line in csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))):
            key = line["task"], int(line["batch_size"]), line["form"]
            losses = cells.setdefault(key, {}).setdefault(index_of(float(line["rate"])), [])
            losses.append(float(line["final_train_loss"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: damaged ({error}); remove it to begin anew") from error
    return [Cell(*key, finals) for key, finals in cells.items()]


COLORS = {"photo": "#009E73", "mlp": "#0072B2", "convnet": "#D55E00"}
MARKERS = {32: "v", 128: "o", 256: "s", 1024: "^"}


def draw(cells: list[Cell]) -> Figure:
    """Final loss, relative to the best one, against the rate; a panel for each `form`."""
    groups = by_form(cells)
    columns = min(3, len(groups))
    rows = -(-len(groups) // columns)
    figure = Figure(figsize=(4 * columns, 3.3 * rows + 1), layout="constrained")
    figure.suptitle(
        "SGD with momentum in the neurons' coordinates: one line for each network and batch size",
        fontsize=10,
    )
    panels = list(figure.subplots(rows, columns, sharey=True, squeeze=False).flat)
    for empty in panels[len(groups) :]:
        empty.set_axis_off()
    for axes, (form, group) in zip(panels, groups.items(), strict=False):
        for cell in group:
            line = [(rate_of(i), mean_loss(cell.finals, i) / cell.loss) for i in cell.finals]
            axes.plot(
                *zip(*[point for point in line if np.isfinite(point[1])], strict=True),
                color=COLORS[cell.task],
                marker=MARKERS.get(cell.batch_size, "D"),
                markersize=4,
                linewidth=1,
                label=f"{TASKS[cell.task].title}, batch {cell.batch_size}",
            )
        one = shared(group)
        axes.axvline(one.kindest, color="black", linewidth=0.8)
        heading = f"divided by {FORMS[form].title}"
        axes.set_title(f"{heading}\nbest rates within a factor {one.spread:.2g}")
        axes.set_xscale("log")
        bests = [cell.best for cell in group]
        # The same number of decades in every panel.
        middle = (min(bests) + max(bests)) / 2
        axes.set_xlim(rate_of(middle - 1.6 * PER_DECADE), rate_of(middle + 1.6 * PER_DECADE))
        axes.set_xlabel("learning rate")
    panels[0].set_yscale("log")
    panels[0].set_ylim(0.97, 2.5)
    panels[0].set_yticks([1, 1.2, 1.5, 2], ["1", "1.2", "1.5", "2"])
    panels[0].yaxis.set_minor_formatter(NullFormatter())
    for axes in panels[::columns]:
        axes.set_ylabel("final training loss, best = 1")
    handles, labels = panels[0].get_legend_handles_labels()
    heading = "vertical line: the kindest rate for all; a line ends where a seed diverged"
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=len(COLORS),
        frameon=False,
        fontsize=8,
        title=heading,
        title_fontsize=8,
    )
    return figure
