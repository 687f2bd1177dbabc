"""The picture of `parts`: a point for each, loss over that of the same network without the rule."""

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.report.drawing import STYLES
from experiments.studies.parts_problems import PROBLEMS
from experiments.studies.parts_tables import Gain, gain, label, network_label
from experiments.studies.study import Result


def draw(results: list[Result]) -> Figure:
    """A panel for each problem, and one for the networks, two in a row."""
    plain = {r.cell[:2]: r for r in results if r.cell.layers == "none"}
    changed = {problem for problem, network in plain if network}
    panels: dict[str, dict[str, Gain]] = {}
    networks: dict[str, Gain] = {}
    for result in results:
        problem, network, form, layers = result.cell
        if layers == "none" or (problem, network) not in plain:
            continue
        found = gain(result, plain[problem, network])
        if not network:
            panels.setdefault(PROBLEMS[problem].title, {})[label(result.cell)] = found
        if layers == "all" and not form and problem in changed:
            networks[network_label(problem, network)] = found
    if networks:
        panels["networks, the rule in all layers"] = networks
    rows = -(-len(panels) // 2)
    most = max(map(len, panels.values()))
    figure = Figure(figsize=(11, rows * (0.17 * most + 0.5) + 0.3), layout="constrained")
    grid = figure.subplots(rows, 2, squeeze=False).flat
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    for axes, (title, of) in zip(grid, panels.items(), strict=False):
        _rows(axes, of)
        axes.set_title(title, fontsize=8, loc="left")
    figure.supxlabel(
        "final training loss over that of the same network without the rule", fontsize=8
    )
    return figure


def _rows(axes: Axes, rows: dict[str, Gain]) -> None:
    """A point and its standard error in each; nothing where one of the two diverges."""
    style = {"color": STYLES["neuronwise"]["color"], "marker": "o", "markersize": 3.5}
    for place, found in enumerate(rows.values()):
        if math.isfinite(found.loss):
            error = 0 if math.isnan(found.error) else found.error
            axes.errorbar([found.loss], [place], xerr=[error], **style)
    axes.axvline(1, color="black", linewidth=0.8)
    names = [name.replace(": ", ":\n") for name in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=6)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="x", labelsize=6)
