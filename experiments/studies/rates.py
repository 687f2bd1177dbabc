"""Does the rate of the plain optimizer stay right in the neurons' coordinates?"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from experiments.records.runs import rounded
from experiments.report.tables import Table
from experiments.studies import rates_figures, rates_tables
from experiments.studies.grid import rate_of
from experiments.studies.measures import Found, measure, pieces
from experiments.studies.options import RatesOptions
from experiments.studies.problems import ENTRIES, PROBLEMS
from experiments.studies.study import Result, Study
from experiments.studies.tasks import MOMENTUM, TASKS, Language, final_losses
from experiments.training.method import make_optimizer
from experiments.training.trainer import Judge, Knobs, Trainer
from experiments.workloads import Samples

JUDGED = 2000
"""The test figure is that of so many test samples."""

PIECES = 50
"""A learning curve is remembered as the means of so many parts."""


class Cell(NamedTuple):
    """A name in `PROBLEMS`, one in `ENTRIES`, and what becomes of the rate in a run."""

    problem: str
    method: str
    schedule: str


class Rates(Study):
    """The final loss of every method at each rate of the grid of each problem."""

    name = "rates"
    further = ("test", "curve")
    columns = ("test",)
    notes = rates_tables.NOTES
    options: RatesOptions

    def cells(self) -> list[Cell]:
        """The plain method always comes first; no BatchNorm where the network has LayerNorm."""
        methods = dict.fromkeys(("plain", *self.options.methods))
        return [
            Cell(problem, method, self.options.schedule)
            for problem in self.options.problems
            for method in sorted(methods, key=list(ENTRIES).index)
            if method != "batchnorm" or not isinstance(TASKS[PROBLEMS[problem].task], Language)
        ]

    def content(self, cell: Cell) -> dict[str, Any]:
        """The problem, and the method by what it is."""
        problem, entry = PROBLEMS[cell.problem], ENTRIES[cell.method]
        return {
            **problem._asdict(),
            "rates": list(problem.rates),
            "method": (str(entry.method.rule), entry.method.normalizer is not None, entry.relative),
            "schedule": cell.schedule,
            "momentum": MOMENTUM,
            "judged": JUDGED,
            "pieces": PIECES,
        }

    def train(self, cell: Cell) -> Result:
        """At every rate; forms of the rule that differ by a knob share a program."""
        problem, entry = PROBLEMS[cell.problem], ENTRIES[cell.method]
        group = cell.method if entry.relative is None else entry.method
        train = self.trainer((cell.problem, group), lambda: self._make(cell))
        rates = [rate_of(index) for index in problem.rates]
        power = None if entry.relative is None else np.full(len(rates), entry.relative)
        runs = train(Knobs(rates, relative=power))
        finals = final_losses(runs._replace(scores=None), problem.batch_size)
        curves = pieces(runs.losses, PIECES)
        assert runs.scores is not None
        measured = {"test": runs.scores.tolist(), "curve": curves.tolist()}
        by_rate = {
            name: dict(zip(problem.rates, rounded(values), strict=True))
            for name, values in measured.items()
        }
        return Result(cell, dict(zip(problem.rates, finals.tolist(), strict=True)), by_rate)

    def _make(self, cell: Cell) -> Trainer:
        problem, method = PROBLEMS[cell.problem], ENTRIES[cell.method].method
        workload = self.workload(problem.task)
        network = TASKS[problem.task].network(method.rule, workload.outputs, method.normalizer)
        test = workload.test
        judge = Judge(
            Samples(test.inputs[:JUDGED], test.targets[:JUDGED]),
            lambda outputs, targets: workload.score(outputs, targets).mean(),
        )
        sizes = self.options.seeds, problem.steps, problem.batch_size
        optimizer = partial(optimizer_of, problem.optimizer, cell.schedule, problem.steps)
        return Trainer(network, workload, optimizer, *sizes, judge)

    def tables(self, results: list[Result]) -> list[Table]:
        """One for each question: problems down, methods across."""
        return rates_tables.make(self.measured(results))

    def measured(self, results: list[Result]) -> Found:
        """Every method held against the plain one of the same problem."""
        finals = {result.cell[:2]: result for result in results}
        found: Found = {}
        for (problem, method), result in finals.items():
            plain = finals[problem, "plain"].finals
            found.setdefault(problem, {})[method] = measure(result.finals, result.further, plain)
        return found

    def draw(self, results: list[Result]) -> Figure:
        """A panel for each method, a line for each problem."""
        return rates_figures.draw_all(results)

    def pictures(self, results: list[Result]) -> dict[str, Callable[[], Figure]]:
        """A small one as well: a panel for each of a few problems, a line for each method."""
        return {
            "": lambda: self.draw(results),
            "_few": lambda: rates_figures.draw_few(results),
        }


def optimizer_of(
    name: str, schedule: str, steps: int, rate: Any
) -> optax.GradientTransformationExtraArgs | optax.GradientTransformation:
    """An optimizer whose rate is constant, or falls to 0 as a cosine does over a run."""
    if schedule == "constant":
        return make_optimizer(name, MOMENTUM, rate)
    return make_optimizer(
        name, MOMENTUM, lambda step: rate * (0.5 + 0.5 * jnp.cos(jnp.pi * step / steps))
    )
