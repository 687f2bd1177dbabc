"""The pictures of the theory."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from experiments.methods import METHODS
from experiments.report.drawing import STYLES
from experiments.theory.claims import layer_wide, neuron_wise
from experiments.theory.gated import gated
from experiments.theory.spectra import Curvature


def draw_conditioning() -> Figure:
    """Condition number of a neuron's block against the share of samples on which it is active."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    thresholds = np.linspace(-3, 3.2, 200)
    shares = [gated(alpha).share for alpha in thresholds]
    for name, of in (("bnp", layer_wide), ("neuronwise", neuron_wise)):
        color, line = STYLES[name]["color"], STYLES[name]["linestyle"]
        values = [of(alpha) for alpha in thresholds]
        axes.plot(shares, values, color=color, linestyle=line, label=METHODS[name].title)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="share of the samples on which the neuron is active",
        ylabel="condition number of its block",
        title="Gaussian inputs, whatever their mean and scale",
    )
    axes.legend(frameon=False)
    return figure


def draw_spectra(found: Sequence[Curvature]) -> Figure:
    """Eigenvalues of the Gauss-Newton matrix over the largest: which share lies above what."""
    workloads = list(dict.fromkeys(each.workload for each in found))
    steps = list(dict.fromkeys(each.step for each in found))
    figure = Figure(figsize=(3 * len(steps), 2.9 * len(workloads)), layout="constrained")
    grid = figure.subplots(len(workloads), len(steps), squeeze=False, sharex=True, sharey=True)
    for row, workload in zip(grid, workloads, strict=True):
        for axes, step in zip(row, steps, strict=True):
            for each in found:
                if (each.workload, each.step) != (workload, step):
                    continue
                values, weights = each.density
                above = np.cumsum(weights[::-1])[::-1]
                style = STYLES[each.coordinates]
                axes.step(
                    np.maximum(values, 1e-8),
                    above,
                    where="pre",
                    color=style["color"],
                    linestyle=style["linestyle"],
                    label=METHODS[each.coordinates].title,
                )
            axes.set(xscale="log", yscale="log", xlim=(1e-6, 1.2), ylim=(1e-3, 1.2))
            axes.set_title(f"{workload}, {step} steps")
        row[0].set_ylabel("share of eigenvalues above")
    for axes in grid[-1]:
        axes.set_xlabel("eigenvalue over the largest")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return figure
