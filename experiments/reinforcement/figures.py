"""The picture of `python -m experiments ppo`."""

import math
from collections.abc import Iterable, Mapping

import numpy as np
from matplotlib.figure import Figure

from experiments.methods import METHODS
from experiments.reinforcement.tables import found
from experiments.reinforcement.tasks import Task
from experiments.report.drawing import STYLES, legend_below
from experiments.studies.grid import mean_loss, rate_of
from experiments.studies.study import Result


def draw(results: Iterable[Result], tasks: Mapping[str, Task]) -> Figure:
    """A column for each environment: median curves with their quartiles; below them the screen."""
    results = list(results)
    every = found(results, tasks)
    figure = Figure(figsize=(max(7.5, 3.1 * len(every)), 5.8), layout="constrained")
    panels = figure.subplots(2, len(every), squeeze=False)
    seeds = max(len(one.shortfalls) for methods in every.values() for one in methods.values())
    figure.suptitle(
        f"Proximal policy optimization; above: each method at its best rate, median and quartiles "
        f"of {seeds} seeds; below: two seeds of the screen",
        fontsize=10,
    )
    for (name, methods), curves, rates in zip(every.items(), *panels, strict=True):
        task = tasks[name]
        curves.axhline(task.target, color="black", linewidth=0.7)
        for method, one in methods.items():
            pieces = one.curves.shape[-1]
            frames = task.frames * (np.arange(pieces) + 1) / pieces / 1000
            look = {**STYLES[method], "marker": None}
            some = np.where(np.isnan(one.curves), -np.inf, one.curves)
            low, middle, high = np.quantile(some, (0.25, 0.5, 0.75), axis=0, method="nearest")
            fine = np.isfinite(low)
            curves.plot(frames[fine], middle[fine], label=METHODS[method].title, **look)
            band = {"color": look["color"], "alpha": 0.12, "linewidth": 0}
            curves.fill_between(frames[fine], low[fine], high[fine], **band)
        curves.set(title=task.title, xlabel="thousand frames")
        for result in results:
            if result.cell.environment == name and result.cell.stage == "screen":
                fine = [i for i in result.finals if math.isfinite(mean_loss(result.finals, i))]
                means = [task.best - mean_loss(result.finals, index) for index in fine]
                look = {**STYLES[result.cell.method], "markersize": 4}
                rates.plot([rate_of(index) for index in fine], means, **look)
        rates.set(xscale="log", xlabel="rate")
    panels[0][0].set_ylabel("return of the episodes that end")
    panels[1][0].set_ylabel("mean final return")
    legend_below(figure, panels[0][0])
    return figure
