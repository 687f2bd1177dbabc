"""What the rule gains, beside what it makes of the conditioning of the network's layers."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from experiments.errors import DataError
from experiments.evidence.outcomes import Found
from experiments.evidence.problems import PROBLEMS
from experiments.evidence.tables import OURS
from experiments.report.tables import Table
from experiments.theory.layers import Layer

#: Problems that end where a loss has no digits left say little by a ratio of losses.
BOUNDS = 1e-3


class Point(NamedTuple):
    """A problem.

    Attributes:
        problem: its name.
        layers: the rule's largest over mean eigenvalue of a neuron's block over plain's, the
            geometric mean over the layers.
        loss: the rule's final training loss over plain's.
    """

    problem: str
    layers: float
    loss: float


def read(file: Path) -> list[Layer]:
    """What ``theory --layers`` has written.

    Raises:
        DataError: for a damaged file.
    """
    try:
        return [Layer(**each) for each in json.loads(file.read_text(encoding="utf-8"))]
    except (OSError, TypeError, ValueError) as error:
        text = f"{file}: damaged ({error}); make it anew with python -m experiments theory --layers"
        raise DataError(text) from error


def points(found: dict[str, Found], layers: Sequence[Layer]) -> list[Point]:
    """Those problems of which both are known, the best conditioned first."""
    last = max((each.step for each in layers), default=0)
    joined = []
    for name, each in found.items():
        task = PROBLEMS[name].task
        some = [one.ratios for one in layers if (one.task, one.step) == (task, last)]
        if not some or not {OURS, "plain"} <= each.outcomes.keys():
            continue
        logs = [math.log(ratios[OURS] / ratios["plain"]) for ratios in some]
        loss = each.loss_ratio(OURS, "plain")[0]
        joined.append(Point(name, math.exp(float(np.mean(logs))), loss))
    return sorted(joined, key=lambda point: point.layers)


def correlation(found: Sequence[Point]) -> float:
    """Spearman's, of what neither diverged nor ended at nothing; what is equal shares its ranks."""
    fine = [point for point in found if BOUNDS < point.loss < 1 / BOUNDS]
    if len(fine) < 3:
        return math.nan
    values = np.array([point[1:] for point in fine])
    ranks = np.sign(values[:, None] - values).sum(axis=1)  # how many are below less those above
    return float(np.asarray(np.corrcoef(ranks.T))[0, 1])


def table(found: Sequence[Point]) -> Table:
    """A row for each problem."""
    rows = [
        [PROBLEMS[point.problem].title, f"{point.layers:.2f}", f"{point.loss:.3g}"]
        for point in found
    ]
    headings = ("problem", "conditioning of its layers over plain's", "final loss over plain's")
    return Table(headings, rows, "What the rule does to the layers, and what it gains")


def draw(found: Sequence[Point]) -> Figure:
    """A point for each problem, fresh ones filled; the highest of each task has its name."""
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.subplots()
    named = set()
    for point in sorted(found, key=lambda point: -point.loss):
        if not BOUNDS < point.loss < 1 / BOUNDS:
            continue
        fresh, task = PROBLEMS[point.problem].fresh, PROBLEMS[point.problem].task
        face = "#D55E00" if fresh else "none"
        axes.plot(point.layers, point.loss, "o", color="#D55E00", markerfacecolor=face)
        if task not in named:
            axes.annotate(task, point[1:], (5, 3), textcoords="offset points", fontsize=8)
        named.add(task)
    axes.axhline(1, color="black", linewidth=0.7)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="largest over mean eigenvalue of a neuron's block: the rule's over plain's",
        ylabel="final training loss: the rule's over plain's",
        title="filled: fresh data",
    )
    return figure
