"""The picture of `parts`: a point for each, loss over that of the same network without the rule."""

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.report.drawing import STYLES
from experiments.studies.parts_problems import PROBLEMS
from experiments.studies.parts_tables import Gain, gain, label, network_label
from experiments.studies.study import Result


def draw(results: list[Result]) -> Figure:
    """A panel for each problem, and one for the networks."""
    plain = {r.cell[:2]: r for r in results if r.cell.layers == "none"}
    panels: dict[str, dict[str, Gain]] = {}
    for result in results:
        problem, network, form, layers = result.cell
        if layers == "none" or (problem, network) not in plain:
            continue
        found = gain(result, plain[problem, network])
        if not network:
            panels.setdefault(PROBLEMS[problem].title, {})[label(result.cell)] = found
        if layers == "all" and not form:
            panels.setdefault("networks", {})[network_label(problem, network)] = found
    panels["networks"] = panels.pop("networks", {})  # the last one
    heights = [len(rows) + 1.5 for rows in panels.values()]
    figure = Figure(figsize=(7.5, 0.19 * sum(heights) + 0.5), layout="constrained")
    grid = figure.subplots(len(panels), 1, height_ratios=heights, squeeze=False)
    for axes, (title, rows) in zip(grid.flat, panels.items(), strict=True):
        _rows(axes, rows)
        axes.set_title(title, fontsize=8, loc="left")
    grid.flat[-1].set_xlabel(
        "final training loss over that of the same network without the rule", fontsize=8
    )
    return figure


def _rows(axes: Axes, rows: dict[str, Gain]) -> None:
    """A point and its standard error in each; nothing where one of both diverges."""
    style = {"color": STYLES["neuronwise"]["color"], "marker": "o", "markersize": 3.5}
    for place, found in enumerate(rows.values()):
        if math.isfinite(found.loss):
            error = 0 if math.isnan(found.error) else found.error
            axes.errorbar([found.loss], [place], xerr=[error], **style)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), list(rows), fontsize=6)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="x", labelsize=6)
