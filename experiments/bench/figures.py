"""The plot: cost against batch and against width."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from experiments.bench.cells import Results
from experiments.bench.methods import METHODS
from experiments.bench.networks import MIDDLE, Network
from experiments.bench.tables import SETTINGS, swept
from experiments.report.drawing import STYLES, legend_below, log_scale, save

DRAWN = {"batchnorm": "batchnorm", "neuronwise": "neuronwise", "full": "unwrapped"}
"""The methods, and in whose style."""

AXES = {"batch": f"batch, at width {MIDDLE.width}", "width": f"width, at batch {MIDDLE.batch}"}


LINEAR_UP_TO = 2.5
"""Ratios beyond which the axis is logarithmic."""


def plot(
    results: Results, sizes: Mapping[str, Sequence[Network]], stem: Path, dtype: str
) -> list[Path]:
    """Draw it as PNG and SVG, and return the files."""
    return save(lambda: cost(results, sizes, dtype), stem, (".png", ".svg"))


def cost(results: Results, sizes: Mapping[str, Sequence[Network]], dtype: str) -> Figure:
    """A row for each setting, a column for what varies; bands: quartiles."""
    settings = swept(dict.fromkeys(cell.setting for cell in results))
    rows = max(1, len(settings))
    figure = Figure(figsize=(8, 2.6 * rows + 1.2), layout="constrained")
    heading = f"time of an MLP's training step, plain = 1 ({dtype}; bands: quartiles)"
    figure.suptitle(heading, fontsize=10)
    panels = figure.subplots(rows, len(sizes), sharey="row", sharex="col", squeeze=False)
    for row, setting in zip(panels, settings, strict=False):
        for axes, (axis, networks) in zip(row, sizes.items(), strict=True):
            for method, style in DRAWN.items():
                _draw(axes, results, setting, method, style, axis, networks)
            axes.axhline(1, color="black", linewidth=0.8)
            _size_axis(axes, [getattr(network, axis) for network in networks])
        row[0].set_ylabel(f"{SETTINGS[setting]}\ntime / plain's")
        _ratio_axis(row[0], results, setting)
    for axes, axis in zip(panels[-1], sizes, strict=True):
        axes.set_xlabel(AXES[axis])
    legend_below(figure, panels[0, 0])
    return figure


def _draw(
    axes: Axes,
    results: Results,
    setting: str,
    method: str,
    style: str,
    axis: str,
    networks: Sequence[Network],
) -> None:
    places, spreads = [], []
    for network in networks:
        cell = results.get(network, setting, method)
        spread = None if cell is None else results.ratios(cell).get("run")
        if spread is not None:
            places.append(getattr(network, axis))
            spreads.append(spread)
    if not spreads:
        return
    form = {"markersize": 5, "linewidth": 1.8, **STYLES[style]}
    medians = [spread.median for spread in spreads]
    axes.plot(places, medians, label=METHODS[method].title, **form)
    low, high = [s.low for s in spreads], [s.high for s in spreads]
    axes.fill_between(places, low, high, color=STYLES[style]["color"], alpha=0.15, lw=0)


def _ratio_axis(axes: Axes, results: Results, setting: str) -> None:
    """Linear, or logarithmic where ratios are large."""
    cells = (cell for cell in results if cell.setting == setting and cell.method in DRAWN)
    spreads = [spreads["run"] for cell in cells if (spreads := results.ratios(cell))]
    highest = max((spread.high for spread in spreads), default=1.0)
    lowest = min((spread.low for spread in spreads), default=1.0)
    if highest > LINEAR_UP_TO:
        log_scale(axes, np.array([1.0, lowest, highest]))
    else:
        axes.set_ylim(min(0.95, lowest), max(1.2, 1.05 * highest))


def _size_axis(axes: Axes, sizes: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
