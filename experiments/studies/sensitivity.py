"""How do the methods take what one would rather not tune: sizes, units, batches, knobs?"""

from functools import partial
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from experiments.report.tables import Table
from experiments.studies import sensitivity_figures, sensitivity_tables
from experiments.studies.grid import rate_of, search
from experiments.studies.options import SensitivityOptions
from experiments.studies.settings import ENTRIES, PROBLEMS, VARIATIONS, Setting
from experiments.studies.study import Result, Study
from experiments.studies.tasks import MOMENTUM, final_losses
from experiments.training.trainer import Knobs, Trainer

MOST = 28
"""Rates that are tried at most: fourteen decades."""


class Cell(NamedTuple):
    """A name in `PROBLEMS`, what varies and its value ("nothing" and ""), and a method."""

    problem: str
    varied: str
    value: Any
    method: str


class Sensitivity(Study):
    """The final loss of every method at its best rate, while one thing varies."""

    name = "sensitivity"
    notes = sensitivity_tables.NOTES
    options: SensitivityOptions

    def cells(self) -> list[Cell]:
        """Problem by problem; the plain network comes first, and knobs have no other methods."""
        cells = []
        for problem in self.options.problems:
            cells += [Cell(problem, "nothing", "", method) for method in ENTRIES]
            for name in self.options.varied:
                variation = VARIATIONS[name]
                cells += [
                    Cell(problem, name, value, method)
                    for value in variation.values
                    if value != variation.default
                    for method in variation.methods
                ]
        return cells

    def content(self, cell: Cell) -> dict[str, Any]:
        """The setting, whatever was varied to get there."""
        problem, setting = PROBLEMS[cell.problem], _setting(cell)
        return {
            **problem._asdict(),
            **setting.content(),
            "steps": setting.steps(problem),
            "method": cell.method,
            "momentum": MOMENTUM,
            "most": MOST,
        }

    def train(self, cell: Cell) -> Result:
        """Search from the best rate of the plain network in the same setting."""
        trainer, batch_size = self._make(cell), _setting(cell).batch_size
        plain = self.results.get(cell._replace(method="plain"))
        guess = PROBLEMS[cell.problem].guess
        if plain is not None and np.isfinite(plain.loss):
            guess = rate_of(plain.best)

        def losses(rates: list[float]) -> np.ndarray:
            return final_losses(trainer(Knobs(rates)), batch_size)

        return Result(cell, search(losses, guess, portion=4, stride=2, most=MOST))

    def _make(self, cell: Cell) -> Trainer:
        problem, setting = PROBLEMS[cell.problem], _setting(cell)
        workload = setting.workload(self.workload(problem.task))
        return Trainer(
            setting.network(cell.method, workload.outputs),
            workload,
            partial(setting.optimizer, problem),
            self.options.seeds,
            setting.steps(problem),
            setting.batch_size,
        )

    def tables(self, results: list[Result]) -> list[Table]:
        """One for each problem."""
        return sensitivity_tables.make(results)

    def draw(self, results: list[Result]) -> Figure:
        """Loss over plain's against each thing."""
        return sensitivity_figures.draw(results)


def _setting(cell: Cell) -> Setting:
    setting = Setting()
    return (
        setting if cell.varied == "nothing" else VARIATIONS[cell.varied].change(setting, cell.value)
    )
