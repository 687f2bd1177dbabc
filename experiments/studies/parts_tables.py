"""The tables of `parts`: which layers are under the rule, which form of it, which network."""

import math
from typing import Any, NamedTuple

import numpy as np

from experiments.report.tables import Table
from experiments.studies.grid import rate_of
from experiments.studies.measures import share_of_steps
from experiments.studies.parts_problems import FORMS, NETWORKS, PROBLEMS
from experiments.studies.study import Result

NOTES = (
    "Each at its best rate of a grid half a decade apart, in brackets. Loss: the final training "
    "loss; plain: itself; the others: over that of the same network without the rule, ± the "
    "standard error of the difference seed by seed. Steps: those after which the mean loss is "
    "where the network without the rule ends, over its own. mean and sigma: the roots of the "
    "sums of mean^2 and sigma^2 over the inputs of a layer, geometric means over the layers, "
    "of the networks trained without the rule.\n\n"
)


class Gain(NamedTuple):
    """What is held against the same network without the rule.

    Attributes:
        loss: over its; nan where that diverges, inf where this one does.
        error: standard error over the seeds.
        steps: over its; inf where it is never reached.
    """

    loss: float
    error: float
    steps: float


def make(results: list[Result]) -> list[Table]:
    """For each problem its layers and forms of the rule; then the networks."""
    of = {result.cell: result for result in results}
    plain = {r.cell[:2]: r for r in results if r.cell.layers == "none"}
    tables = []
    for problem in dict.fromkeys(cell.problem for cell in of):
        rows = [
            [label(cell), *_shown(result, plain[problem, ""])]
            for cell, result in of.items()
            if cell.problem == problem and not cell.network
        ]
        tables.append(Table([PROBLEMS[problem].title, "loss", "steps"], rows))
    rows = []
    for (problem, network), theirs in plain.items():
        cell = theirs.cell._replace(layers="all")
        if cell in of:
            mean, sigma = inputs(theirs)
            rows.append(
                [
                    network_label(problem, network),
                    *_shown(theirs, theirs)[:1],
                    *_shown(of[cell], theirs),
                    f"{mean:.2f}",
                    f"{sigma:.2f}",
                ]
            )
    headings = ["network", "plain's loss", "the rule's", "steps", "mean", "sigma"]
    return [*tables, Table(headings, rows)]


def label(cell: Any) -> str:
    """What is under the rule."""
    if cell.form:
        return f"all layers, {FORMS[cell.form][0]}"
    names = {"none": "plain", "all": "all layers"}
    only = cell.layers if "all but" in cell.layers else f"only {cell.layers}"
    return names.get(cell.layers, only)


def network_label(problem: str, network: str) -> str:
    """What is trained."""
    title = PROBLEMS[problem].title
    return f"{title}: {NETWORKS[network][0]}" if network else title


def gain(result: Result, plain: Result) -> Gain:
    """Of a result over that without the rule."""
    if not math.isfinite(plain.loss):
        return Gain(math.nan, math.nan, math.nan)
    if not math.isfinite(result.loss):
        return Gain(math.inf, math.nan, math.inf)
    ours, theirs = (np.array(one.finals[one.best]) for one in (result, plain))
    spread = (ours - theirs).std(ddof=1) if len(ours) > 1 else math.nan
    error = float(spread) / math.sqrt(len(ours)) / plain.loss
    shares = [share_of_steps(one.further["curve"][one.best], plain.loss) for one in (result, plain)]
    return Gain(result.loss / plain.loss, error, shares[0] / min(shares[1], 1.0))


def inputs(result: Result) -> tuple[float, float]:
    """Sizes of mean and sigma of the inputs of a layer, over layers and seeds, at the best rate."""
    if not math.isfinite(result.loss):
        return math.nan, math.nan
    sizes = np.array(result.further["inputs"][result.best], float)
    mean, sigma = np.exp(np.log(np.maximum(sizes, 1e-12)).mean(axis=(0, 1)))
    return float(mean), float(sigma)


def _shown(result: Result, plain: Result) -> list[str]:
    """Loss and steps."""
    if not math.isfinite(result.loss):
        return ["diverges", ""]
    rate = f"({rate_of(result.best):.2g})"
    if result is plain:
        return [f"{result.loss:.4g} {rate}", ""]
    found = gain(result, plain)
    if math.isnan(found.loss):
        return [f"trains, plain does not {rate}", ""]
    error = "" if math.isnan(found.error) else f" ± {found.error:.3f}"
    steps = f"{found.steps:.2f}" if math.isfinite(found.steps) else "never"
    return [f"{found.loss:.3f}{error} {rate}", steps]
