"""The tables of `python -m experiments ppo`."""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from experiments.evidence.judge import holm, sign_flip
from experiments.methods import METHODS
from experiments.reinforcement.tasks import Sizes, Task
from experiments.report.tables import Table
from experiments.studies import grid
from experiments.studies.grid import mean_loss, rate_of
from experiments.studies.study import Result

NOTES = (
    "Of each method at its best rate (`!`: at the edge of the grid), by two seeds of the screen; "
    "the runs of the first tables have other seeds. Medians over the seeds, quartiles in brackets. "
    f"Final return: mean of {Sizes().episodes} fresh episodes. All episodes: mean over the "
    "learning curve. Frames to the target: until the curve of a run is there; never: more than "
    "half of the runs are not. p: two-sided, paired by seed, of the distance to the best return "
    "there can be against plain's, adjusted for the methods (Holm). KL: "
    "of the policy from the one that acted, mean over the steps of all updates.\n\n"
)


class Found(NamedTuple):
    """The final runs of a method in an environment.

    Attributes:
        rate: at which.
        at_edge: whether that is the first or the last of the grid.
        shortfalls: of the final return, by seed; inf for a run that diverged.
        returns: the final return, likewise; -inf for a run that diverged.
        overall: the mean of the learning curve from the first episode's end on, likewise.
        frames: to the target, likewise; inf for a miss.
        divergence: of the policy within an update, likewise.
        curves: [S, P].
    """

    rate: float
    at_edge: bool
    shortfalls: list[float]
    returns: np.ndarray
    overall: np.ndarray
    frames: np.ndarray
    divergence: np.ndarray
    curves: np.ndarray

    def slowness(self, task: Task) -> list[float]:
        """How far the mean of the learning curve is from the best return, by seed."""
        return (task.best - self.overall).tolist()


def found(results: Iterable[Result], tasks: Mapping[str, Task]) -> dict[str, dict[str, Found]]:
    """Environment -> method -> its final runs."""
    results = list(results)
    screens = {result.cell[:2]: result for result in results if _is(result, "screen")}
    every: dict[str, dict[str, Found]] = {}
    for result in results:
        if not _is(result, "final"):
            continue
        environment, method = result.cell[:2]
        task, screen = tasks[environment], screens[environment, method]
        ((index, shortfalls),) = result.finals.items()
        returns = _array(result.further["final_return"][index])
        curves = _array(result.further["curve"][index])
        per_piece = task.frames / curves.shape[-1]
        there = curves >= task.target
        steps = np.where(there.any(axis=-1), (there.argmax(axis=-1) + 1) * per_piece, np.inf)
        every.setdefault(environment, {})[method] = Found(
            rate_of(index),
            index in (min(screen.finals), max(screen.finals)),
            shortfalls,
            np.where(np.isnan(returns), -np.inf, returns),
            _overall(curves),
            steps,
            _array(result.further["divergence"][index]),
            curves,
        )
    return every


def best_index(screen: Result, task: Task) -> int | None:
    """The rate with the best mean final return; None where all diverged.

    Returns that differ by less than a hundredth of the target count as equal, since 500 of 500 are
    reached at many rates; of those the best over all episodes.
    """
    least = grid.best_index(screen.finals)
    if least is None:
        return None
    limit = mean_loss(screen.finals, least) + abs(task.target) / 100
    alike = [index for index in screen.finals if mean_loss(screen.finals, index) <= limit]
    return max(alike, key=lambda index: _overall(_array(screen.further["curve"][index])).mean())


def make(results: Iterable[Result], tasks: Mapping[str, Task]) -> list[Table]:
    """The final runs of each environment, then the screen of all."""
    results = list(results)
    every = found(results, tasks)
    finals = [_final(tasks[name], methods) for name, methods in every.items()]
    return [*finals, _screen(results, tasks)]


def _final(task: Task, methods: dict[str, Found]) -> Table:
    plain = methods["plain"]
    others = {name: one for name, one in methods.items() if name != "plain"}
    final = holm({n: sign_flip(one.shortfalls, plain.shortfalls) for n, one in others.items()})
    overall = holm(
        {name: sign_flip(one.slowness(task), plain.slowness(task)) for name, one in others.items()}
    )
    rows = [
        [
            METHODS[name].title,
            f"{one.rate:.2g}" + "!" * one.at_edge,
            _quartiles(one.returns),
            f"{(one.returns >= task.target).sum()} of {len(one.returns)}",
            f"{final[name]:.2g}" if name in final else "",
            _quartiles(one.overall),
            f"{overall[name]:.2g}" if name in overall else "",
            _quartiles(one.frames / 1000),
            f"{np.median(one.divergence):.2g}",
        ]
        for name, one in methods.items()
    ]
    headings = (
        f"{task.title}, {task.frames // 1000}k frames",
        "rate",
        "final return",
        f"at {task.target:g}",
        "p",
        "all episodes",
        "p",
        f"thousand frames to {task.target:g}",
        "KL",
    )
    return Table(headings, rows)


def _screen(results: Iterable[Result], tasks: Mapping[str, Task]) -> Table:
    """Mean final returns at every rate."""
    screens = [result for result in results if _is(result, "screen")]
    indices = sorted({index for result in screens for index in result.finals})
    rows = []
    for result in screens:
        task = tasks[result.cell.environment]
        best = best_index(result, task)
        cells = []
        for index in indices:
            shortfall = mean_loss(result.finals, index)
            text = f"{task.best - shortfall:.0f}" if math.isfinite(shortfall) else "diverged"
            text = text if index in result.finals else ""
            cells.append(f"**{text}**" if index == best else text)
        rows.append([f"{task.title}, {METHODS[result.cell.method].title}", *cells])
    return Table(("screen: mean final return", *(f"{rate_of(i):.2g}" for i in indices)), rows)


def _overall(curves: np.ndarray) -> np.ndarray:
    """Mean of learning curves [S, P] from the first piece on in which an episode ends [S]."""
    there = np.isfinite(curves)
    return np.where(there.any(-1), np.nansum(curves, -1) / np.maximum(there.sum(-1), 1), -np.inf)


def _is(result: Result, stage: str) -> bool:
    return result.cell.stage == stage


def _array(values: object) -> np.ndarray:
    """Numbers, nan for None."""
    return np.array(values, dtype=float)


def _quartiles(values: np.ndarray) -> str:
    """Median (first to third quartile), by numbers that are there."""
    low, middle, high = (
        _number(float(np.quantile(values, share, method="nearest"))) for share in (0.25, 0.5, 0.75)
    )
    return "never" if middle == "never" else f"{middle} ({low} to {high})"


def _number(value: float) -> str:
    return "never" if value == math.inf else "diverged" if value == -math.inf else f"{value:.4g}"
