"""`python -m experiments twins`: train in both frameworks, hold the curves beside each other."""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from torch.nn import functional as F

import torchnorm
from experiments.methods import METHODS
from experiments.records.files import prepare_folder, write_text
from experiments.report.drawing import STYLES, save
from experiments.report.progress import make_console
from experiments.report.tables import Table
from experiments.studies.tasks import TASKS, Language
from experiments.training.method import make_optimizer
from experiments.training.trainer import Knobs, Trainer, initialize
from experiments.twins.networks import twin_of
from experiments.twins.options import TwinsOptions
from experiments.workloads import STUDIED, Workload

#: Name of the optimizer -> PyTorch's with the settings of Optax's.
OPTIMIZERS: dict[str, Any] = {
    "adam": torch.optim.Adam,
    "sgd": partial(torch.optim.SGD, momentum=0.9),
}
#: Steps in which rounding has not been blown up yet.
EARLY = 10


class Curves(NamedTuple):
    """The losses of one method on one task in both frameworks, [T] each."""

    task: str
    method: str
    jax: np.ndarray
    torch: np.ndarray

    def apart(self, steps: int) -> float:
        """The largest relative difference in the first steps."""
        one, other = self.jax[:steps], self.torch[:steps]
        return float(np.max(np.abs(one - other) / np.abs(one)))


def run(options: TwinsOptions, console: Console | None = None) -> int:
    """Train, print, write ``twins.md`` and ``twins.png``."""
    console = make_console(console)
    prepare_folder(options.out)
    found = []
    for curves in measure(options):
        found.append(curves)
        title = f"{TASKS[curves.task].title}, {METHODS[curves.method].title}"
        console.print(f"{title}: {curves.apart(EARLY):.1e} apart in {EARLY} steps")
    shown = table(found)
    console.print(shown)
    write_text(options.out / "twins.md", shown.markdown())
    save(lambda: draw(found), options.out / "twins", [".png"])
    return 0


def measure(options: TwinsOptions) -> Iterator[Curves]:
    """Both curves of each method that fits each task."""
    for task in options.tasks:
        workload = STUDIED[TASKS[task].workload].load(options.data_dir)
        for method in options.methods:
            if METHODS[method].normalizer is None or not isinstance(TASKS[task], Language):
                yield Curves(task, method, *both(task, method, workload, options))


def both(
    task: str, method: str, workload: Workload, options: TwinsOptions
) -> tuple[np.ndarray, np.ndarray]:
    """The losses [T] in JAX and in PyTorch, from the same weights on the same minibatches."""
    of, sizes = METHODS[method], (options.steps, options.batch_size)
    network = TASKS[task].network(of.rule, workload.outputs, of.normalizer)
    optimizer = partial(make_optimizer, options.optimizer, 0.9)
    jax_losses = Trainer(network, workload, optimizer, 1, *sizes)(Knobs([options.rate])).losses
    twin = twin_of(network, workload.train.inputs.shape[1:])
    twin.load(initialize(network, 0, workload.train.inputs)["params"])
    tx = OPTIMIZERS[options.optimizer](twin.parameters(), lr=options.rate)
    if of.rule is not None:
        tx = torchnorm.optim.in_neuron_coordinates(tx, twin)
    inputs, targets = map(torch.from_numpy, (workload.train.inputs, workload.train.targets))
    losses = []
    for rows in torch.from_numpy(workload.batches(0, *sizes)).long():
        tx.zero_grad()
        outputs = twin(inputs[rows])
        loss = F.cross_entropy(outputs.flatten(0, -2), targets[rows].flatten().long())
        loss.backward()
        tx.step()
        losses.append(loss.item())
    return jax_losses[0, 0], np.array(losses)


def table(found: list[Curves]) -> Table:
    """A row for each method on each task."""
    rows = [
        [
            f"{TASKS[each.task].title}, {METHODS[each.method].title}",
            *(f"{losses[-len(losses) // 7 :].mean():.4g}" for losses in (each.jax, each.torch)),
            f"{each.apart(EARLY):.1e}",
            f"{each.apart(len(each.jax)):.1e}",
        ]
        for each in found
    ]
    headings = ("network", "JAX", "PyTorch", f"apart in {EARLY} steps", "in all")
    return Table(headings, rows, "Final training loss, and how far the losses are apart")


def draw(found: list[Curves]) -> Figure:
    """The curves, a panel for each task: PyTorch's dots lie on JAX's lines."""
    tasks = list(dict.fromkeys(each.task for each in found))
    figure = Figure(figsize=(4.2 * len(tasks), 3.4), layout="constrained")
    for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        for each in (each for each in found if each.task == task):
            color, label = STYLES[each.method]["color"], METHODS[each.method].title
            steps = np.arange(1, len(each.jax) + 1)
            axes.plot(steps, each.jax, color=color, linewidth=0.9, label=label)
            some = slice(None, None, max(1, len(steps) // 25))
            axes.plot(steps[some], each.torch[some], "o", color=color, markersize=3.5, alpha=0.7)
        axes.set(yscale="log", xlabel="step", title=TASKS[task].title)
        axes.legend(frameon=False, fontsize=8)
    figure.axes[0].set_ylabel("minibatch loss (line: JAX, dots: PyTorch)")
    return figure
