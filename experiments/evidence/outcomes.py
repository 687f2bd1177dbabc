"""Every method's final runs on a problem, held against the target of the baselines."""

import math
from collections.abc import Iterable
from typing import NamedTuple

from experiments.evidence.entries import ENTRIES
from experiments.evidence.judge import paired_ratio, sign_flip, steps_to, target_of
from experiments.evidence.problems import PROBLEMS
from experiments.studies.grid import best_index, rate_of
from experiments.studies.study import Result


class Outcome(NamedTuple):
    """A method on a problem: ten runs at its best rate.

    Attributes:
        rate: at which.
        at_edge: whether that is the first or last of the grid.
        finals: final training losses, by seed; inf for one that diverged.
        validation: validation losses, likewise.
        tests: test figures, likewise; nan for one that diverged.
        steps: to the target, likewise; inf for a miss.
    """

    rate: float
    at_edge: bool
    finals: list[float]
    validation: list[float]
    tests: list[float]
    steps: list[float]


class Found(NamedTuple):
    """A problem.

    Attributes:
        best: the best baseline, which sets the target.
        target: training loss.
        outcomes: by method; only those whose final runs are there.
    """

    best: str
    target: float
    outcomes: dict[str, Outcome]

    def loss_ratio(self, method: str, other: str) -> tuple[float, float, float]:
        """Median ratio of the final losses, seed by seed, with its interval."""
        return paired_ratio(self.outcomes[method].finals, self.outcomes[other].finals)

    def steps_ratio(self, method: str, other: str) -> tuple[float, float, float]:
        """The same of the steps to the target."""
        return paired_ratio(self.outcomes[method].steps, self.outcomes[other].steps)

    def p_value(self, method: str, other: str) -> float:
        """That the final losses do not differ."""
        return sign_flip(self.outcomes[method].finals, self.outcomes[other].finals)


def outcomes(results: Iterable[Result]) -> dict[str, Found]:
    """By problem; only those of which every baseline that fits is there."""
    by: dict[str, dict[tuple[str, str], Result]] = {}
    for result in results:
        cell = result.cell
        by.setdefault(cell.problem, {})[cell.method, cell.stage] = result
    found = {problem: _found(problem, cells) for problem, cells in by.items()}
    return {problem: each for problem, each in found.items() if each is not None}


def _found(problem: str, cells: dict[tuple[str, str], Result]) -> Found | None:
    methods = [name for name in ENTRIES if (name, "final") in cells]
    finals = {name: _only(cells[name, "final"].finals) for name in methods}
    baselines = {name: finals[name] for name in methods if ENTRIES[name].baseline}
    screened = {name for name, stage in cells if stage == "screen" and ENTRIES[name].baseline}
    if not baselines or screened - baselines.keys():
        return None
    try:
        best, target = target_of(baselines)
    except ValueError:
        return None
    steps = PROBLEMS[problem].steps
    every = {}
    for name in methods:
        result, screen = cells[name, "final"], cells.get((name, "screen"))
        index = next(iter(result.finals))
        grid = sorted(screen.finals) if screen else [index]
        chosen = best_index(screen.finals) if screen else index
        curves = result.further["curve"][index]
        every[name] = Outcome(
            rate_of(index),
            chosen in (grid[0], grid[-1]),
            finals[name],
            _numbers(result.further["validation"][index], math.inf),
            _numbers(result.further["test"][index], math.nan),
            [
                steps_to(_numbers(curve, math.inf), steps, target) if final < math.inf else math.inf
                for curve, final in zip(curves, finals[name], strict=True)
            ],
        )
    return Found(best, target, every)


def _only(finals: dict[int, list[float]]) -> list[float]:
    (losses,) = finals.values()
    return losses


def _numbers(values: list[float | None], missing: float) -> list[float]:
    return [missing if value is None else value for value in values]
