"""The picture of `sensitivity`: small multiples, loss over plain's against each thing."""

import math
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from experiments.report.drawing import STYLES
from experiments.studies.sensitivity_tables import ratio
from experiments.studies.settings import ENTRIES, PROBLEMS, VARIATIONS
from experiments.studies.study import Result, grouped

LIMITS = 0.2, 5.0
"""Of the ratios that are shown; beyond, a point lies on the edge."""
KNOB_COLORS = ("#000000", "#7A4B9A", "#8C6D1F")
"""Of the problems, where only the rule's own knobs vary: none of them is a method's."""


def draw(results: list[Result]) -> Figure:
    """A row for each problem and a panel for each thing; below, the knobs of the rule."""
    problems = grouped(results, "problem")
    varied = dict.fromkeys(r.cell.varied for r in results if r.cell.varied != "nothing")
    things = [name for name in varied if not VARIATIONS[name].ours]
    knobs = [name for name in varied if VARIATIONS[name].ours]
    columns = max(len(things), len(knobs), 1)
    rows = len(problems) * bool(things) + bool(knobs) or 1
    figure = Figure(figsize=(2.1 * columns + 0.6, 2.2 * rows + 0.8), layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    for number, (problem, some) in enumerate(problems.items()):
        of = {result.cell[1:]: result for result in some}
        for axes, name in zip(panels[number], things, strict=False):
            for method in VARIATIONS[name].methods[1:]:
                _line(axes, of, name, method, _style(method))
            if number == 0:
                axes.set_title(VARIATIONS[name].title, fontsize=8)
        if things:
            panels[number][0].set_ylabel(PROBLEMS[problem].title.replace(", ", "\n"), fontsize=7)
        for axes, name in zip(panels[-1], knobs, strict=False):
            color = KNOB_COLORS[list(PROBLEMS).index(problem)]
            look = {"color": color, "marker": "os^"[number % 3], "markersize": 3, "linewidth": 1.3}
            _line(axes, of, name, "neuronwise", look)
            axes.set_title(VARIATIONS[name].title, fontsize=8)
    if knobs:
        panels[-1][0].set_ylabel("neuron-wise:\nits knobs", fontsize=7)
    methods = [name for name in ENTRIES if name != "plain"] if things else []
    handles = [Line2D([], [], **_style(name), label=ENTRIES[name].title) for name in methods]
    if knobs:
        handles += [
            Line2D(
                [], [], color=KNOB_COLORS[list(PROBLEMS).index(name)], label=PROBLEMS[name].title
            )
            for name in problems
        ]
    where = {"loc": "outside lower center", "ncols": len(handles), "frameon": False}
    text = "final training loss over plain's, each at its best rate; x: diverges or beyond"
    figure.legend(handles=handles, title=text, fontsize=7, title_fontsize=8, **where)
    return figure


def _style(method: str) -> dict[str, Any]:
    shown = STYLES.get(method, {"color": "#E69F00", "linestyle": (0, (6, 2, 2, 2)), "marker": "P"})
    return {**shown, "markersize": 3, "linewidth": 1.3}


def _line(
    axes: Axes,
    of: dict[tuple[str, Any, str], Result],
    name: str,
    method: str,
    style: dict[str, Any],
) -> None:
    """A method, while one thing varies; equal distances between the values."""
    variation = VARIATIONS[name]
    places, ratios = [], []
    for place, value in enumerate(variation.values):
        key = ("nothing", "") if value == variation.default else (name, value)
        if (*key, method) in of:
            places.append(place)
            ratios.append(ratio(of, *key, method).mean)
    low, high = LIMITS
    shown = [min(max(value, low), high) for value in ratios]
    axes.plot(places, shown, **style)
    lost = [
        (place, value)
        for place, value, mean in zip(places, shown, ratios, strict=True)
        if not low <= mean <= high and not math.isnan(mean)
    ]
    if lost:
        axes.plot(*zip(*lost, strict=True), "x", color=style["color"], clip_on=False)
    axes.set_axis_on()
    axes.axhline(1, color="black", linewidth=0.8)
    labels = [str(value).replace(", ", "\n") for value in variation.values]
    axes.set_xticks(range(len(labels)), labels, fontsize=6)
    axes.set_xlim(-0.4, len(labels) - 0.6)
    axes.set_yscale("log")
    axes.set_ylim(low / 1.1, high * 1.1)
    axes.set_yticks([0.2, 0.5, 1, 2, 5], ["0.2", "0.5", "1", "2", "5"], fontsize=6)
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(labelleft=True)
