"""Screen every method at every rate, then run it at its best one: experiments/PROTOCOL.md."""

import copy
import math
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from experiments.evidence import tables
from experiments.evidence.entries import ENTRIES, Entry
from experiments.evidence.figures import draw
from experiments.evidence.options import SweepOptions
from experiments.evidence.problems import PROBLEMS, Problem
from experiments.records.runs import rounded
from experiments.report.tables import Table
from experiments.studies.grid import best_index, rate_of
from experiments.studies.measures import pieces
from experiments.studies.study import Result, Study
from experiments.studies.tasks import MOMENTUM, TASKS, Language, Physics, final_losses
from experiments.training.method import make_optimizer
from experiments.training.trainer import Judge, Knobs, Trainer
from experiments.workloads import STUDIED, Samples, Workload
from experiments.workloads.base import split, standardized

SCREENED, FINAL = 2, 10
"""Seeds of the two stages."""
FIRST_FINAL = 100
"""The smallest seed of the final runs: the screen has not used it."""
VALIDATION = 0.15
"""Share of the training samples that nothing learns from."""
JUDGED = 2000
"""At most so many samples make a validation or test figure."""
PIECES = 50
"""A learning curve is remembered as the means of so many parts: 2 % of a run each."""


class Cell(NamedTuple):
    """A name in `PROBLEMS`, one in `ENTRIES`, and "screen" or "final"."""

    problem: str
    method: str
    stage: str


class Sweep(Study):
    """Every method on every problem: all rates with few seeds, then the best with ten."""

    name = "sweep"
    further = ("validation", "validation_figure", "test", "curve")
    columns = ("validation", "validation_figure", "test")
    notes = tables.NOTES
    options: SweepOptions

    def cells(self) -> list[Cell]:
        """Problem by problem; of each method the screen comes before the final runs."""
        return [
            Cell(problem, method, stage)
            for problem in self.options.problems
            for method in sorted(
                dict.fromkeys(("plain", *self.options.methods)), key=list(ENTRIES).index
            )
            if fits(PROBLEMS[problem], ENTRIES[method])
            for stage in ("screen", "final")
        ]

    def content(self, cell: Cell) -> dict[str, Any]:
        """The problem, and the method by what it is; the final rate follows from the screen."""
        problem, entry = PROBLEMS[cell.problem], ENTRIES[cell.method]
        return {
            **problem._asdict(),
            "rates": list(problem.rates),
            "method": _identity(entry),
            "momentum": MOMENTUM,
            "stage": cell.stage,
            "seeds": SCREENED if cell.stage == "screen" else FINAL,
            "first_seed": _first_seed(cell.stage),
            "judged": JUDGED,
            "validation": VALIDATION,
            "pieces": PIECES,
        }

    def train(self, cell: Cell) -> Result:
        """At every rate, or at the best of the screen; nothing where no rate trains."""
        problem = PROBLEMS[cell.problem]
        indices = list(problem.rates)
        if cell.stage == "final":
            best = best_index(self.results[cell._replace(stage="screen")].finals)
            if best is None:
                return _diverged(cell, indices[0])
            indices = [best]
        runs = self._make(cell)(Knobs([rate_of(index) for index in indices]))
        finals = final_losses(runs._replace(scores=None), problem.batch_size)
        assert runs.scores is not None
        measured = {
            **{name: runs.scores[..., n].tolist() for n, name in enumerate(self.further[:3])},
            "curve": pieces(runs.losses, PIECES).tolist(),
        }
        further = {
            name: dict(zip(indices, rounded(values), strict=True))
            for name, values in measured.items()
        }
        return Result(cell, dict(zip(indices, finals.tolist(), strict=True)), further)

    def _make(self, cell: Cell) -> Trainer:
        problem, entry = PROBLEMS[cell.problem], ENTRIES[cell.method]
        learned, kept_out = held_out(self.workload(problem.task), entry.standardized)
        final = cell.stage == "final"
        judge = _judge(learned, kept_out, test=final)
        seeds = FINAL if final else SCREENED
        return make_trainer(problem, entry, learned, seeds, judge, _first_seed(cell.stage))

    def tables(self, results: list[Result]) -> list[Table]:
        """What the final runs say."""
        return tables.make(results)

    def draw(self, results: list[Result]) -> Figure:
        """Performance profiles."""
        return draw(results)


def fits(problem: Problem, entry: Entry) -> bool:
    """Whether a method can be had on a problem; PROTOCOL.md says where not, and why."""
    task = TASKS[problem.task]
    language = isinstance(task, Language)
    if language and (entry.normalizer is not None or entry.standardized):
        return False
    if isinstance(task, Physics) and (entry.standardized or not entry.apart):
        return False
    if entry.standardized and STUDIED[task.workload].standard:
        return False
    if entry.samples > problem.batch_size or entry.only not in ("", problem.optimizer):
        return False
    return not entry.optimizer or problem.optimizer != "sgd"


def _first_seed(stage: str) -> int:
    return 0 if stage == "screen" else FIRST_FINAL


def _diverged(cell: Cell, index: int) -> Result:
    """Every seed, where the screen has found no rate."""
    nothing = [None] * FINAL
    further = {name: {index: nothing} for name in Sweep.further[:3]}
    curve = {index: [[None] * PIECES] * FINAL}
    return Result(cell, {index: [math.inf] * FINAL}, {**further, "curve": curve})


def held_out(workload: Workload, standard: bool = False) -> tuple[Workload, Samples]:
    """(the workload without its validation samples, those).

    Args:
        workload: all of it.
        standard: whether each input is to be standardized, by the samples that remain.
    """
    rest, kept_out = split(workload.train, VALIDATION, seed=1)
    learned = copy.copy(workload)
    learned.train = rest
    if standard:
        parts = standardized(rest, rest, workload.test, kept_out)
        learned.train, learned.test, kept_out = parts
    return learned, kept_out


def make_trainer(
    problem: Problem,
    entry: Entry,
    learned: Workload,
    seeds: int,
    judge: Judge | None = None,
    first_seed: int = 0,
) -> Trainer:
    """What trains a method on a problem.

    Args:
        problem: the network, its optimizer, the sizes.
        entry: the method.
        learned: the data.
        seeds: how many.
        judge: what the networks are asked in the end.
        first_seed: the smallest seed.
    """
    extra = {"after": entry.after, "wrapper": entry.wrapper}
    make = TASKS[problem.task].network
    network = make(entry.rule, learned.outputs, entry.normalizer, **extra)
    return Trainer(
        network,
        learned,
        partial(_optimizer, problem, entry),
        seeds,
        problem.steps,
        problem.batch_size,
        judge,
        first_seed,
        entry.inside,
    )


def _judge(workload: Workload, kept_out: Samples, *, test: bool) -> Judge:
    """Validation loss and figure, and the test figure if it is asked for (else nan)."""
    few = [
        Samples(part.inputs[:JUDGED], part.targets[:JUDGED]) for part in (kept_out, workload.test)
    ]
    parts = few if test else few[:1]
    count = len(few[0])

    def verdict(outputs: Any, targets: Any) -> Any:
        scores = workload.score(outputs, targets)
        loss = workload.loss(outputs[:count], targets[:count])
        tested = scores[count:].mean() if test else jnp.nan
        return jnp.stack([loss, scores[:count].mean(), tested])

    inputs, targets = (np.concatenate(arrays) for arrays in zip(*map(_pair, parts), strict=True))
    return Judge(Samples(inputs, targets), verdict)


def _pair(samples: Samples) -> tuple[np.ndarray, np.ndarray]:
    return samples.inputs, samples.targets


def _optimizer(problem: Problem, entry: Entry, rate: Any) -> Any:
    optimizer = make_optimizer(entry.optimizer or problem.optimizer, MOMENTUM, rate)
    if entry.before is None:
        return optimizer
    return optax.chain(entry.before(problem.batch_size), optimizer)


def _identity(entry: Entry) -> list[Any]:
    """What a method is, whatever it is called."""
    makers = entry.normalizer, entry.wrapper, entry.before
    names = [getattr(make, "__name__", None) for make in makers]
    return [str(entry.rule), *names, entry.after, entry.standardized, entry.inside, entry.optimizer]
