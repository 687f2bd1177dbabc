"""What the plots have in common: how a method is drawn, axes, strips, legends."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from experiments.methods import METHODS
from experiments.options import Plan
from experiments.records.files import atomic
from experiments.report.comparison import title
from experiments.workloads import Workload

STYLES: dict[str, dict[str, Any]] = {
    "plain": {"color": "#555555", "linestyle": (0, (1, 1)), "marker": "s"},
    "batchnorm": {"color": "#0072B2", "linestyle": (0, (5, 2)), "marker": "o"},
    "layernorm": {"color": "#009E73", "linestyle": (0, (4, 1.5, 1, 1.5)), "marker": "^"},
    "bnp": {"color": "#CC79A7", "linestyle": (0, (3, 1, 1, 1, 1, 1)), "marker": "D"},
    "neuronwise": {"color": "#D55E00", "linestyle": "-", "marker": "v"},
    "unwrapped": {"color": "#E69F00", "linestyle": (0, (6, 2, 2, 2)), "marker": "P"},
}
"""How each method is drawn: colors by Okabe and Ito, and a line style and a marker of its own, so
that nothing hangs on color alone."""

SETTINGS: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "svg.hashsalt": "experiments",  # the same figure gives the same file
}


def new_figure(workload: Workload, plan: Plan, strip: int = 0) -> tuple[Figure, Axes]:
    """A figure with its heading, and its axes; above them, if asked, a strip of so many rows."""
    figure = Figure(figsize=(7.5, 5.2 + 0.2 * strip), layout="constrained")
    figure.suptitle(title(workload, plan), fontsize=10)
    if not strip:
        return figure, figure.add_subplot()
    _, axes = figure.subplots(2, 1, sharex=True, height_ratios=[0.2 * strip, 4.5])
    return figure, axes


def draw_strip(axes: Axes, failed: Mapping[str, Iterable[float]]) -> None:
    """A row for each method, with a cross at every rate at which it failed."""
    for row, (method, rates) in enumerate(failed.items()):
        color = STYLES[method]["color"]
        for rate in rates:
            axes.plot([rate], [row], "x", color=color, markeredgewidth=2)
    axes.set_yticks(range(len(failed)), [METHODS[method].title for method in failed])
    axes.set_ylim(len(failed) - 0.4, -0.6)
    axes.set_ylabel("failed")
    axes.tick_params(which="both", labelbottom=False, length=0)


def legend_below(
    figure: Figure, axes: Axes, heading: str = "", columns: int | None = None, fontsize: int = 9
) -> None:
    """A legend under the axes, where it hides nothing; by default in one row."""
    handles, labels = axes.get_legend_handles_labels()
    where = {"loc": "outside lower center", "ncols": columns or len(labels), "frameon": False}
    lines = {"handlelength": 3, "columnspacing": 1.2, "title": heading or None}
    sizes = {"fontsize": fontsize, "title_fontsize": fontsize}
    figure.legend(handles, labels, **where, **lines, **sizes)


def log_scale(axes: Axes, values: np.ndarray) -> None:
    """A logarithmic loss axis around some values, of which at most six decades are shown."""
    values = values[np.isfinite(values) & (values > 0)]
    if not values.size:
        return
    axes.set_yscale("log")
    low, high = max(values.min(), values.max() / 1e6) / 1.2, values.max() * 1.3
    axes.set_ylim(low, high)
    if high > 300 * low:
        axes.yaxis.set_major_locator(LogLocator(numticks=12))
        return
    # Plain numbers, also within a decade.
    subs = (1, 1.5, 2, 3, 5, 7) if high < 10 * low else (1, 2, 5)
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def save(draw: Callable[[], Figure], stem: Path, suffixes: Iterable[str]) -> list[Path]:
    """Draw a figure, write it in each format, and return the files."""
    with matplotlib.rc_context(SETTINGS):
        figure = draw()
        files = [stem.with_suffix(suffix) for suffix in suffixes]
        for file in files:
            metadata = {"Date": None} if file.suffix == ".svg" else {}
            with atomic(file) as temporary:
                figure.savefig(temporary, dpi=160, metadata=metadata)
    return files
