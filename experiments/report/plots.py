"""The figures, each as PNG and SVG."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from experiments.methods import METHODS
from experiments.options import Plan
from experiments.records.runs import running_mean
from experiments.report.drawing import STYLES, draw_strip, legend_below, log_scale, new_figure, save
from experiments.report.summary import MethodSummary, Statistic
from experiments.workloads import Workload


def plot_all(
    folder: Path,
    summaries: Sequence[MethodSummary],
    workload: Workload,
    plan: Plan,
    pictures: Mapping[str, np.ndarray],
) -> list[Path]:
    """Draw every figure there is data for, in `folder`, and return the files.

    The pictures, if the workload has any, are RGB [H, W, 3] by the name of their method.
    """
    drawn = [summary for summary in summaries if summary.best is not None]
    figures: dict[str, Callable[[], Figure]] = {
        "learning_curves": lambda: learning_curves(drawn, workload, plan),
        "rate_sensitivity": lambda: rate_sensitivity(summaries, workload, plan),
    }
    original = workload.original()
    if original is not None and pictures:
        figures["pictures"] = lambda: picture_grid(drawn, workload, original, pictures)
    formats = (".png", ".svg")
    return [f for name, draw in figures.items() for f in save(draw, folder / name, formats)]


def learning_curves(summaries: Sequence[MethodSummary], workload: Workload, plan: Plan) -> Figure:
    """Running mean of the training loss at each method's best rate; bands: all seeds."""
    figure, axes = new_figure(workload, plan)
    settled = []  # losses once the first steps, which fall from anywhere, are over
    for index, summary in enumerate(summaries):
        losses = [np.array(run["curve"], float) for run in summary.runs]
        curves = np.array([running_mean(curve, plan.window) for curve in losses])
        steps, mean = np.arange(1, curves.shape[1] + 1), curves.mean(axis=0)
        style = STYLES[summary.method]
        label = f"{METHODS[summary.method].title}, rate {summary.best:g}"
        # Markers staggered from method to method, so that they do not hide each other.
        spacing = max(1, len(steps) // 8)
        marks = (min(len(steps) - 1, plan.window + index * spacing // 5), spacing)
        form = {"markevery": marks, "markersize": 5, "linewidth": 1.8, **style}
        axes.plot(steps, mean, label=label, **form)
        low, high = curves.min(axis=0), curves.max(axis=0)
        axes.fill_between(steps, low, high, color=style["color"], alpha=0.15, lw=0)
        settled.append(mean[min(len(steps) - 1, plan.window + len(steps) // 20) :])
    axes.axhline(plan.target_loss, color="black", linewidth=0.8)
    place = {"verticalalignment": "bottom", "transform": axes.get_yaxis_transform()}
    axes.text(0.01, plan.target_loss, f"target {plan.target_loss:g}", fontsize=9, **place)
    axes.set_xlabel("step")
    axes.set_ylabel(
        f"training loss ({workload.loss_name}),\nmean of the last {plan.window} minibatches"
    )
    log_scale(axes, np.concatenate([*settled, [plan.target_loss]]))
    if summaries:
        axes.legend(frameon=False, handlelength=3.5, title=f"best rate; band: {_seeds(plan)}")
    return figure


def rate_sensitivity(summaries: Sequence[MethodSummary], workload: Workload, plan: Plan) -> Figure:
    """Final training loss against the rate; bars: all seeds; the strip on top: where it failed.

    A rate has failed if a seed diverged, or if the runs ended above their first loss.
    """
    began = max((run["curve"][0] for s in summaries for run in s.runs), default=np.inf)
    finals = {
        s.method: {rate: final for rate, final in s.finals.items() if final.mean <= began}
        for s in summaries
    }
    failed = {s.method: {*s.lost, *s.finals} - set(finals[s.method]) for s in summaries}
    figure, axes = new_figure(workload, plan, strip=len(summaries) if any(failed.values()) else 0)
    if any(failed.values()):
        draw_strip(figure.axes[0], failed)
    form = {"markersize": 6, "linewidth": 1.8, "markerfacecolor": "white", "elinewidth": 1}
    for method, found in finals.items():
        means, bars = [final.mean for final in found.values()], _bars(found.values())
        look = {"label": METHODS[method].title, "capsize": 2.5, **form, **STYLES[method]}
        axes.errorbar(list(found), means, yerr=bars, **look)
    for summary in summaries:
        if summary.best is not None:
            style = STYLES[summary.method] | {"linestyle": "none", "markersize": 9, "zorder": 5}
            axes.plot([summary.best], [summary.finals[summary.best].mean], **style)
    axes.set_xscale("log")
    axes.set_xticks(plan.rates, [f"{rate:g}" for rate in plan.rates])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("learning rate")
    axes.set_ylabel(
        f"final training loss ({workload.loss_name}),\n"
        f"mean of the last {plan.tail_steps} minibatches"
    )
    means = [final.mean for found in finals.values() for final in found.values()]
    if means:
        log_scale(axes, np.array(means))
    heading = f"bars: {_seeds(plan)}; filled: best rate"
    if any(failed.values()):
        heading += "; failed: a seed diverged, or they ended above their first loss"
    legend_below(figure, axes, heading)
    return figure


def picture_grid(
    summaries: Sequence[MethodSummary],
    workload: Workload,
    original: np.ndarray,
    pictures: Mapping[str, np.ndarray],
) -> Figure:
    """The photograph and what each method has made of it, at its best rate, by the first seed."""
    shown = [s for s in summaries if s.method in pictures]
    panels = [(workload.title, original)]
    for summary in shown:
        figure = summary.runs[0]["test"]  # None if the very last step broke the network
        text = "diverged" if figure is None else f"{figure:.1f}"
        panels.append((f"{METHODS[summary.method].title}: {text}", pictures[summary.method]))
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    height, width, _ = original.shape
    size = (3.2 * columns, (3.2 * height / width + 0.35) * rows + 0.3)
    grid = Figure(figsize=size, layout="constrained")
    grid.suptitle(f"at each method's best rate, first seed; {workload.test_name}", fontsize=10)
    for index, (text, picture) in enumerate(panels, start=1):
        axes = grid.add_subplot(rows, columns, index)
        axes.imshow(picture)
        axes.set_title(text)
        axes.set_axis_off()
    return grid


def _bars(finals: Iterable[Statistic]) -> np.ndarray:
    """How far the smallest and the largest value lie from the mean, [2, n]."""
    bars = [[final.mean - final.low, final.high - final.mean] for final in finals]
    # The mean of equal numbers can be off by a rounding error; Matplotlib refuses negative bars.
    return np.maximum(np.reshape(bars, (-1, 2)).T, 0)


def _seeds(plan: Plan) -> str:
    return "1 seed" if plan.seeds == 1 else f"all {plan.seeds} seeds"
