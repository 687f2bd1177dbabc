"""The pictures of the study of rates."""

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from experiments.report.drawing import STYLES, legend_below
from experiments.studies.grid import curve, mean_loss, rate_of
from experiments.studies.problems import ENTRIES, OPTIMIZERS, PROBLEMS
from experiments.studies.study import Result
from experiments.studies.tasks import TASKS

FEW = ("pixels_sgd_128", "cifar_adam", "friedman_sgd", "photo_adam")
"""The problems of the small picture; the first ones of the study where it has none of them."""

MOST = 2.2
"""The small picture shows losses up to so many times plain's best."""

FEW_METHODS = ("plain", "batchnorm", "bnp", "neuronwise")

COLORS = {
    "MLP, images": "#0072B2",
    "MLP, table": "#009E73",
    "convnet": "#D55E00",
    "transformer": "#CC79A7",
}
LINES: dict[str, Any] = {"sgd": "-", "adam": "--", "adamw": "--", "muon": ":"}


def draw_all(results: list[Result]) -> Figure:
    """A panel for each method: loss over plain's best against rate over plain's best rate."""
    plain = {result.cell.problem: result for result in results if result.cell.method == "plain"}
    methods = [m for m in ENTRIES if any(result.cell.method == m for result in results)]
    columns = min(3, len(methods))
    rows = -(-len(methods) // columns)
    figure = Figure(figsize=(4 * columns, 3.2 * rows + 1), layout="constrained")
    panels = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
    for empty in panels[len(methods) :]:
        empty.set_axis_off()
    for axes, method in zip(panels, methods, strict=False):
        for result in results:
            if result.cell.method == method and math.isfinite(plain[result.cell.problem].loss):
                _line(axes, result, plain[result.cell.problem])
        _median(axes, [r for r in results if r.cell.method == method], plain)
        axes.set_title(ENTRIES[method].title)
        axes.axvline(1, color="black", linewidth=0.8)
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_xscale("log")
    panels[0].set_xlim(rate_of(-10.5), rate_of(6.5))
    _loss_axis(panels[0], 0.45, 3)
    for axes in panels[: len(methods)][-columns:]:
        axes.set_xlabel("rate / plain's best rate")
    for axes in panels[::columns]:
        axes.set_ylabel("final loss / plain's best")
    used = [PROBLEMS[name] for name in plain]
    handles = [
        Line2D([], [], color=color, label=family)
        for family, color in COLORS.items()
        if any(problem.family == family for problem in used)
    ]
    lines: dict[Any, list[str]] = {}
    for name, title in OPTIMIZERS.items():
        if any(problem.optimizer == name for problem in used):
            lines.setdefault(LINES[name], []).append(title)
    handles += [
        Line2D([], [], color="#555555", linestyle=line, label=", ".join(titles))
        for line, titles in lines.items()
    ]
    handles.append(Line2D([], [], color="black", linewidth=2.5, label="median"))
    text = "a line for each problem; it ends where a seed diverges"
    where = {"loc": "outside lower center", "ncols": len(handles), "frameon": False}
    figure.legend(handles=handles, title=text, fontsize=8, title_fontsize=8, **where)
    return figure


def draw_few(results: list[Result]) -> Figure:
    """A panel for each of a few problems: final loss against rate, a line for each method."""
    every = list(dict.fromkeys(result.cell.problem for result in results))
    problems = [name for name in FEW if name in every] or every[: len(FEW)]
    figure = Figure(figsize=(2.9 * len(problems), 3.3), layout="constrained")
    panels = figure.subplots(1, len(problems), squeeze=False)[0]
    for axes, name in zip(panels, problems, strict=True):
        group = {r.cell.method: r for r in results if r.cell.problem == name}
        for method in FEW_METHODS:
            if method in group:
                style = STYLES[method] | {"markersize": 4, "linewidth": 1.4}
                axes.plot(*curve(group[method].finals), label=ENTRIES[method].title, **style)
        problem, plain = PROBLEMS[name], group["plain"]
        optimizer = OPTIMIZERS[problem.optimizer]
        axes.set_title(f"{TASKS[problem.task].title}\n{optimizer}", fontsize=9)
        axes.set_xlabel("learning rate")
        axes.set_xscale("log")
        axes.set_xlim(rate_of(problem.rates[0] - 0.5), rate_of(problem.rates[-1] + 0.5))
        if math.isfinite(plain.loss):
            axes.axvline(rate_of(plain.best), color="#555555", linewidth=0.8)
            shown = {m: group[m] for m in FEW_METHODS if m in group}
            least = min(result.loss for result in shown.values())
            _loss_axis(axes, 0.9 * least / plain.loss, MOST, plain.loss)
            above = [m for m, result in shown.items() if result.loss > MOST * plain.loss]
            for number, method in enumerate(above):
                text = f"{ENTRIES[method].title}: {shown[method].loss / plain.loss:.0f} x plain"
                where, color = (0.98, 0.98 - 0.08 * number), STYLES[method]["color"]
                axes.annotate(
                    text, where, xycoords="axes fraction", color=color, ha="right", va="top"
                )
    panels[0].set_ylabel("final training loss")
    heading = "vertical line: the plain optimizer's best rate; a line ends where a seed diverges"
    legend_below(figure, panels[0], heading, fontsize=8)
    return figure


def _line(axes: Axes, result: Result, plain: Result) -> None:
    """A problem, in units of the plain optimizer's best."""
    problem = PROBLEMS[result.cell.problem]
    rates, losses = curve(result.finals, unit=plain.loss)
    relative = [rate / rate_of(plain.best) for rate in rates]
    style: dict[str, Any] = {"color": COLORS[problem.family], "linestyle": LINES[problem.optimizer]}
    axes.plot(relative, losses, linewidth=1, alpha=0.8, **style)


def _median(axes: Axes, results: list[Result], plain: dict[str, Result]) -> None:
    """The median of the problems at each rate that most of them have tried; inf counts."""
    values: dict[int, list[float]] = {}
    for result in results:
        reference = plain[result.cell.problem]
        if math.isfinite(reference.loss):
            for index in result.finals:
                loss = mean_loss(result.finals, index) / reference.loss
                values.setdefault(index - reference.best, []).append(loss)
    middle = {
        at: float(np.quantile(of, 0.5, method="higher"))
        for at, of in sorted(values.items())
        if len(of) > 0.6 * len(results)
    }
    fine = [at for at, value in middle.items() if math.isfinite(value)]
    axes.plot([rate_of(at) for at in fine], [middle[at] for at in fine], "k-", linewidth=2.5)


def _loss_axis(axes: Axes, low: float, high: float, unit: float = 1) -> None:
    """A logarithmic axis from `low` to `high` units, in plain numbers."""
    axes.set_yscale("log")
    axes.set_ylim(low * unit, high * unit)
    subs = (1, 2, 5) if high > 20 * low else (1, 1.5, 2, 3, 5, 7)
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
