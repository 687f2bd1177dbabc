"""Statistics in some of the steps only: which schedules are safe at which rates."""

import csv
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
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
    sgd,
    trainer,
)
from experiments.studies.study import begin, publish

BATCH_SIZE = 256
STEPS = {"photo": 400, "mlp": 300, "convnet": 300}
# The rates that are tried, from the first to the last.
RATES = {"photo": (0.003, 0.1), "mlp": (0.003, 0.1), "convnet": (0.003, 0.1)}


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


SCHEDULES = (
    every(1, 0),
    *(every(interval, 0) for interval in (4, 8, 16)),
    *(every(interval, 100) for interval in (4, 8, 16)),
    *(every(interval, 200) for interval in (4, 16)),
    every(4, 0, decay=0.5),
    growing(10, 16),
    growing(25, 16),
)


Results = dict[tuple[str, str], Finals]
"""(task, schedule) -> final loss at each rate."""


def measure(
    tasks: tuple[str, ...],
    seeds: int,
    data_dir: Path | None,
    console: Console,
    results: Results,
    keep: Callable[[], None],
) -> None:
    """Train under each schedule at each rate.

    Args:
        tasks: see `run`, as the next two.
        seeds: as tasks.
        data_dir: as tasks.
        console: where to print.
        results: what has been found before, and is not trained again; the others are added.
        keep: called after each.
    """
    for task in tasks:
        begin = time.perf_counter()
        workload = TASKS[task].load(data_dir)
        network = TASKS[task].network(jaxnorm.Rule(), workload.outputs)
        steps = STEPS[task]
        train = trainer(Setting(workload, network, BATCH_SIZE, steps, sgd), seeds)
        low, high = map(index_of, RATES[task])
        indices = range(low, high + 1)
        for schedule in SCHEDULES:
            if (task, schedule.name) in results:
                continue
            count = len(indices)
            losses = train(
                [rate_of(index) for index in indices],
                np.full(count, schedule.decay),
                np.tile(schedule.mask(steps), (count, 1)),
            )
            finals = dict(zip(indices, losses.tolist(), strict=True))
            results[task, schedule.name] = finals
            keep()
            console.print(f"{task}, {schedule.name}: {_row(finals, finals)}", highlight=False)
        console.print(f"{time.perf_counter() - begin:.0f} s", highlight=False)


def run(
    tasks: tuple[str, ...],
    seeds: int,
    data_dir: Path | None,
    out: Path,
    console: Console | None = None,
) -> int:
    """Train, print the table, write ``thinning.md``, ``.csv`` and ``.png``.

    The CSV is written after each result; what it holds already is not trained again.

    Args:
        tasks: names of tasks.
        seeds: of each run.
        data_dir: see `compare`.
        out: folder for the results.
        console: where to print; None: the terminal.
    """
    console = begin(out, console)
    file = out / "thinning.csv"
    results = read(file) if file.exists() else {}
    measure(
        tasks, seeds, data_dir, console, results, lambda: write_text(file, comma_separated(results))
    )
    names = [(task, schedule.name) for task in tasks for schedule in SCHEDULES]
    results = {name: results[name] for name in names}
    publish(out / "thinning", tables(results), lambda: draw(results), console)
    return 0


def tables(results: Results) -> str:
    """A table for each task: schedules down, rates across."""
    parts = []
    for task in dict.fromkeys(task for task, _ in results):
        own = {name: finals for (t, name), finals in results.items() if t == task}
        reference = own[SCHEDULES[0].name]
        share = {s.name: f"{s.mask(STEPS[task]).mean():.0%}" for s in SCHEDULES}
        headings = [TASKS[task].title, "steps with statistics", "largest safe rate"]
        headings += [f"{rate_of(index):.2g}" for index in reference]
        rows = []
        for name, finals in own.items():
            safe = safe_index(finals, reference)
            shown = "none" if safe is None else f"{rate_of(safe):.2g}"
            rows.append([name, share[name], shown, *_row(finals, reference)])
        parts.append(markdown_table(headings, rows))
    return "\n".join(parts)


def safe_index(finals: Finals, reference: Finals) -> int | None:
    """The largest rate up to which the loss is within a tenth of that with fresh statistics."""
    safe = None
    for index, losses in finals.items():
        loss = np.mean(losses)
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


def comma_separated(results: Results) -> str:
    """A line for every run."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["task", "schedule", "rate", "seed", "final_train_loss"])
    for (task, name), finals in results.items():
        for index, losses in finals.items():
            for seed, loss in enumerate(losses):
                writer.writerow([task, name, f"{rate_of(index):.4g}", seed, f"{loss:.5g}"])
    return file.getvalue()


def read(path: Path) -> Results:
    """What `comma_separated` wrote.

    Raises:
        DataError: for a file that is damaged.
    """
    results: Results = {}
    try:
        for line in csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))):
            finals = results.setdefault((line["task"], line["schedule"]), {})
            losses = finals.setdefault(index_of(float(line["rate"])), [])
            losses.append(float(line["final_train_loss"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: damaged ({error}); remove it to begin anew") from error
    return results


def draw(results: Results) -> Figure:
    """Final loss against the rate; a panel for each task."""
    tasks = list(dict.fromkeys(task for task, _ in results))
    figure = Figure(figsize=(5 * len(tasks), 5.6), layout="constrained")
    figure.suptitle(f"Statistics in some of the steps only, batches of {BATCH_SIZE}", fontsize=10)
    panels = figure.subplots(1, len(tasks), squeeze=False)[0]
    markers = "ovDs^Pv<>X*hd"
    colors = matplotlib.colormaps["tab20"].colors  # type: ignore[attr-defined]
    for axes, task in zip(panels, tasks, strict=True):
        own = {name: finals for (t, name), finals in results.items() if t == task}
        for number, (name, finals) in enumerate(own.items()):
            line = [(rate_of(i), mean_loss(finals, i)) for i in finals]
            line = [(rate, loss) for rate, loss in line if np.isfinite(loss)]
            if line:
                axes.plot(
                    *zip(*line, strict=True),
                    color=colors[number % len(colors)] if number else "black",
                    linewidth=1.2 if number else 2.4,
                    linestyle="--" if "no warm-up" in name else "-",
                    marker=markers[number % len(markers)],
                    markersize=4,
                    label=name,
                )
        axes.set_xscale("log")
        rates = [rate_of(index) for index in next(iter(own.values()))]
        axes.set_xticks(rates, [f"{rate:.2g}" for rate in rates])
        axes.minorticks_off()
        axes.set_xlabel("learning rate (a line ends where it diverges)")
        axes.set_title(TASKS[task].title)
        log_scale(axes, np.array([mean_loss(f, i) for f in own.values() for i in f]))
    panels[0].set_ylabel("final training loss")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure
