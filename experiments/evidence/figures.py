"""The pictures of the evidence."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from experiments.evidence.entries import ENTRIES
from experiments.evidence.judge import profile
from experiments.evidence.outcomes import Found, outcomes
from experiments.evidence.problems import PROBLEMS
from experiments.evidence.tables import MAIN, OURS, methods_of
from experiments.report.drawing import log_scale
from experiments.studies import grid
from experiments.studies.study import Result

#: Okabe and Ito's colors, and a line style for each of the methods that share one.
_LINES = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))
_COLORS = ("#555555", "#0072B2", "#009E73", "#E69F00", "#56B4E9", "#CC79A7")


def style_of(method: str) -> dict[str, Any]:
    """How a method is drawn; the default form stands out."""
    if method == "neuronwise":
        return {"color": "#D55E00", "linewidth": 2.4}
    others = [name for name in ENTRIES if name != "neuronwise"]
    at = others.index(method)
    line = _LINES[at // len(_COLORS)]
    return {"color": _COLORS[at % len(_COLORS)], "linestyle": line, "linewidth": 1.3}


def draw(results: Iterable[Result]) -> Figure:
    """Performance profiles of the steps to the target, fresh problems beside known ones.

    Of the problems on which the default was run. A method that was not run there never gets there.
    """
    found = {
        name: each._replace(outcomes={m: one for m, one in each.outcomes.items() if m in MAIN})
        for name, each in outcomes(results).items()
        if OURS in each.outcomes
    }
    groups = {
        "fresh": {name: each for name, each in found.items() if PROBLEMS[name].fresh},
        "known": {name: each for name, each in found.items() if not PROBLEMS[name].fresh},
    }
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    every: dict[str, Artist] = {}
    for axes, (title, some) in zip(figure.subplots(1, 2, sharey=True), groups.items(), strict=True):
        taus = np.geomspace(1, 10, 200)
        for name, share in profile(ratios_of(some), [float(tau) for tau in taus]).items():
            (every[ENTRIES[name].title],) = axes.step(taus, share, where="post", **style_of(name))
        axes.set(
            xscale="log",
            xlabel="steps to the target over the fastest method's",
            title=f"{title} problems ({len(some)})",
            ylim=(0, 1.03),
        )
        axes.set_xticks([1, 2, 5, 10], ["1", "2", "5", "10"], minor=False)
        axes.minorticks_off()
    figure.axes[0].set_ylabel("share of the problems")
    if every:
        handles, labels = list(every.values()), list(every)
        figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8)
    return figure


def ratios_of(found: dict[str, Found]) -> dict[str, list[float]]:
    """Method -> of each problem its median steps over the least of any method there."""
    medians = {
        problem: {name: float(np.median(one.steps)) for name, one in each.outcomes.items()}
        for problem, each in found.items()
    }
    return {
        name: [
            row.get(name, np.inf) / min(row.values()) if np.isfinite(min(row.values())) else np.inf
            for row in medians.values()
        ]
        for name in methods_of(found)
    }


def draw_problem(results: Iterable[Result], target: float | None) -> Figure:
    """One problem: median curves of the final runs, and the screen's losses over the rate.

    Args:
        results: of its cells.
        target: drawn as a line; None: there is none yet.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    curves, rates = figure.subplots(1, 2)
    losses: list[float] = []
    every: dict[str, Artist] = {}
    for result in results:
        method, stage, style = result.cell.method, result.cell.stage, style_of(result.cell.method)
        if stage == "screen":
            if result.loss < np.inf:
                rates.plot(*grid.curve(result.finals), marker="o", markersize=3, **style)
                rates.set(xscale="log", yscale="log")
            continue
        for runs in result.further["curve"].values():
            values = np.array([[np.nan if v is None else v for v in run] for run in runs], float)
            middle = np.median(np.where(np.isnan(values), np.inf, values), axis=0)
            losses += middle[np.isfinite(middle)].tolist()
            share = 100 * (np.arange(len(middle)) + 1) / len(middle)
            middle[np.isinf(middle)] = np.nan
            (every[ENTRIES[method].title],) = curves.plot(share, middle, **style)
    if target is not None:
        curves.axhline(target, color="black", linewidth=0.7)
    log_scale(curves, np.array(losses))
    curves.set(xlabel="% of the steps", title="training loss, median of ten seeds")
    rates.set(xlabel="rate", title="final loss, two seeds of the screen")
    if every:
        handles, labels = list(every.values()), list(every)
        figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=7)
    return figure
