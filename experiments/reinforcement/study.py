"""`python -m experiments ppo`: every method at every rate, then more seeds at its best one."""

import importlib
import math
from dataclasses import replace
from importlib.metadata import version
from itertools import pairwise
from typing import Any, NamedTuple, get_args

import numpy as np
from matplotlib.figure import Figure

from experiments.methods import METHODS
from experiments.records.content import content_key
from experiments.records.runs import rounded
from experiments.reinforcement import figures, ppo, tables
from experiments.reinforcement.options import EnvironmentName, LearnerName, PpoOptions
from experiments.reinforcement.tasks import TASKS, Task
from experiments.report.tables import Table
from experiments.studies.grid import rate_of
from experiments.studies.study import Result, Study

SCREENED = 2
"""Seeds at every rate of the screen."""
FIRST_FINAL = 100
"""The smallest seed of the final runs: the screen has not used it."""
PIECES = 50
"""A learning curve has at most so many points."""
QUICK_RATES, QUICK_UPDATES = 3, 15
"""Of the quick form: the middle of the grid, and runs so short."""

CODE = tuple(f"reinforcement/{name}.py" for name in ("policy", "ppo", "tasks"))
"""The files of this folder whose code a number depends on."""


class Cell(NamedTuple):
    """A name in `TASKS`, one in `METHODS`, and "screen" or "final"."""

    environment: str
    method: str
    stage: str


class Reinforcement(Study):
    """Judged by how far the final return is from the best there can be: the less, the better."""

    name = "ppo"
    further = ("final_return", "divergence", "curve")
    columns = ("final_return", "divergence")
    judged_by = "shortfall"
    notes = tables.NOTES
    options: PpoOptions

    def __init__(self, options: PpoOptions) -> None:
        """As many final runs as the screen has, so that both share a program.

        Raises:
            ModuleNotFoundError: gymnax, or what it needs, is not installed.
        """
        importlib.import_module("gymnax")
        environments, methods = get_args(EnvironmentName), get_args(LearnerName)
        if options.quick:
            environments, methods = ("cartpole",), ("batchnorm", "neuronwise")
        options = replace(
            options,
            environments=options.environments or environments,
            methods=options.methods or methods,
        )
        self._of: tuple[tuple[str, str], ppo.Ppo] | None = None
        super().__init__(options)
        self.tasks = {name: self._task(name) for name in options.environments or ()}
        counts = {SCREENED * len(self._rates(name)) for name in self.tasks}
        self.options = replace(options, seeds=max(counts))

    def _task(self, name: str) -> Task:
        task = TASKS[name]
        return task._replace(updates=QUICK_UPDATES) if self.options.quick else task

    def _rates(self, name: str) -> list[int]:
        rates = list(TASKS[name].rates)
        first = (len(rates) - QUICK_RATES) // 2
        return rates[first : first + QUICK_RATES] if self.options.quick else rates

    def cells(self) -> list[Cell]:
        """Environment by environment; of each method the screen comes before the final runs."""
        methods = dict.fromkeys(("plain", *(self.options.methods or ())))
        return [
            Cell(name, method, stage)
            for name in self.tasks
            for method in sorted(methods, key=list(METHODS).index)
            for stage in ("screen", "final")
        ]

    def content(self, cell: Cell) -> dict[str, Any]:
        """The environment, and the method by what it is; the final rate follows from the screen."""
        task, method = self.tasks[cell.environment], METHODS[cell.method]
        return {
            **task._asdict(),
            "gymnax": version("gymnax"),
            "rates": self._rates(cell.environment),
            "method": [str(method.rule), getattr(method.normalizer, "__name__", None)],
            "stage": cell.stage,
            "batch_size": task.sizes.minibatch,
            "steps": task.updates * task.sizes.optimizer_steps,
            "pieces": PIECES,
        }

    def key(self, content: dict[str, Any], origin: dict[str, Any]) -> str:
        """There are no data; the code of this folder counts."""
        return content_key(origin, None, content, CODE)

    def train(self, cell: Cell) -> Result:
        """At every rate, or at the best of the screen; nothing where no rate trains."""
        indices, seeds = self._rates(cell.environment), list(range(SCREENED))
        if cell.stage == "final":
            screen = self.results[cell._replace(stage="screen")]
            best = tables.best_index(screen, TASKS[cell.environment])
            count = self.options.seeds
            if best is None:
                return Result(cell, {indices[0]: [math.inf] * count}, _nothing(indices[0], count))
            indices, seeds = [best], list(range(FIRST_FINAL, FIRST_FINAL + count))
        rates = np.repeat([rate_of(index) for index in indices], len(seeds))
        learned = self._learner(cell)(rates, np.tile(seeds, len(indices)))
        returns = learned.final_return.reshape(len(indices), -1)
        lost = TASKS[cell.environment].best - returns
        curves = curve_of(learned.returns, learned.episodes, PIECES)
        measured = {
            "final_return": returns.tolist(),
            "divergence": learned.divergence.mean(axis=-1).reshape(returns.shape).tolist(),
            "curve": curves.reshape(*returns.shape, -1).tolist(),
        }
        further = {
            name: dict(zip(indices, rounded(values), strict=True))
            for name, values in measured.items()
        }
        finals = np.where(np.isnan(lost), np.inf, lost).tolist()
        return Result(cell, dict(zip(indices, finals, strict=True)), further)

    def _learner(self, cell: Cell) -> ppo.Ppo:
        """One for both stages."""
        group = cell.environment, cell.method
        if self._of is None or self._of[0] != group:
            self._of = group, ppo.Ppo(self.tasks[cell.environment], METHODS[cell.method])
        return self._of[1]

    def tables(self, results: list[Result]) -> list[Table]:
        """The final runs of each environment, then the screen."""
        return tables.make(results, self.tasks)

    def draw(self, results: list[Result]) -> Figure:
        """Learning curves above, the screen below."""
        return figures.draw(results, self.tasks)


def curve_of(returns: np.ndarray, episodes: np.ndarray, pieces: int) -> np.ndarray:
    """Mean return of the episodes that ended in each part of runs, [R, P].

    Args:
        returns: sums of them in each update [R, U].
        episodes: how many they are [R, U].
        pieces: P, unless there are fewer updates.

    Returns:
        Where no episode ended, what was there before; nan before the first one.
    """
    parts = [
        np.stack([part.sum(axis=-1) for part in np.array_split(of, min(pieces, of.shape[-1]), -1)])
        for of in (returns, episodes)
    ]
    sums, counts = parts
    curve = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    for before, now in pairwise(curve):
        now[np.isnan(now)] = before[np.isnan(now)]
    return curve.T


def _nothing(index: int, count: int) -> dict[str, dict[int, list[Any]]]:
    """What is measured where no rate trains."""
    each = {name: {index: [None] * count} for name in Reinforcement.columns}
    return {**each, "curve": {index: [[None] * PIECES] * count}}
