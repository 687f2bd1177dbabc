"""The tables of the study of rates: a question each, problems down, methods across."""

import math
from collections.abc import Callable, Iterable

import numpy as np

from experiments.report.tables import Table
from experiments.studies.grid import rate_of
from experiments.studies.measures import Found, Measures
from experiments.studies.problems import ENTRIES, heading

NOTES = """\
(a) mean over the seeds, ± the standard error of the difference to plain on the same seeds; (b) in
brackets the best rate over plain's, ! at the edge of the grid; (c) straight lines between the
rates, both axes logarithmic; (d) the loss is a mean over 6 % of a run.

"""


def make(found: Found) -> list[Table]:
    """All tables."""
    methods = [name for name in ENTRIES if any(name in row for row in found.values())]
    others = [name for name in methods if name != "plain"]
    return [
        _table(
            "(a) final loss at plain's best rate, plain = 1",
            found,
            others,
            _at_plain,
            lambda one: one.at_plain,
            _summary(found, others, lambda one: one.at_plain) + _shares(found, others),
        ),
        _table(
            "(b) final loss at its own best rate, plain = 1",
            found,
            others,
            _best,
            lambda one: one.best,
            _summary(found, others, lambda one: one.best),
        ),
        _table(
            "(c) largest / smallest rate within 5 % of the best loss",
            found,
            methods,
            lambda one: f"{one.window:.2g}",
            None,
            [["median", *(_median(found, name, lambda one: one.window) for name in methods)]],
        ),
        _table(
            "(d) steps to plain's final loss, at plain's best rate, share of all",
            found,
            methods,
            lambda one: f"{one.steps:.0%}" if math.isfinite(one.steps) else "never",
            lambda one: one.steps,
        ),
        _table(
            "test figure at plain's best rate",
            found,
            methods,
            lambda one: f"{one.test:.3g}" if math.isfinite(one.test) else "diverges",
        ),
    ]


def _table(
    title: str,
    found: Found,
    methods: list[str],
    show: Callable[[Measures], str],
    least: Callable[[Measures], float] | None = None,
    more: Iterable[list[str]] = (),
) -> Table:
    """A row for each problem; the method with the least of something stands out."""
    rows = []
    for problem, row in found.items():
        smallest = min((least(one) for one in row.values() if one and least), default=None)
        cells = []
        for name in methods:
            one = row.get(name)
            text = show(one) if one else "diverges" if name in row else ""
            outstanding = one and least and least(one) == smallest and math.isfinite(least(one))
            cells.append(f"**{text}**" if outstanding else text)
        rate = f"{rate_of(plain.rate):.2g}" if (plain := row["plain"]) else "none"
        rows.append([heading(problem), rate, *cells])
    rows += [[line[0], "", *line[1:]] for line in more]
    return Table([title, "plain's rate", *(ENTRIES[name].title for name in methods)], rows)


def _at_plain(one: Measures) -> str:
    if not math.isfinite(one.at_plain):
        return "diverges"
    error = f" ± {one.error:.1g}" if math.isfinite(one.error) else ""
    return f"{one.at_plain:.3f}{error}"


def _best(one: Measures) -> str:
    return f"{one.best:.3f} ({one.factor:.2g}{'!' if one.at_edge else ''})"


Value = Callable[[Measures], float]


def _values(found: Found, method: str, value: Value) -> list[float]:
    """Of each problem that the method can be used for; inf where it diverges at every rate."""
    row = [row[method] for row in found.values() if method in row]
    return [math.inf if one is None else value(one) for one in row]


def _number(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "diverges"


def _median(found: Found, method: str, value: Value) -> str:
    return _number(float(np.median(_values(found, method, value))))


def _summary(found: Found, methods: list[str], value: Value) -> list[list[str]]:
    """Worst, median, and how often worse than plain."""
    values = {name: _values(found, name, value) for name in methods}
    return [
        ["worst", *(_number(max(values[name])) for name in methods)],
        ["median", *(_median(found, name, value) for name in methods)],
        [
            "worse than plain",
            *(f"{sum(v > 1 for v in values[name])} of {len(values[name])}" for name in methods),
        ],
    ]


def _shares(found: Found, methods: list[str]) -> list[list[str]]:
    """Of the gain that the own best rate brings, what plain's rate gets: median, and worst."""
    lines: list[list[str]] = [["share of its best gain, median"], ["share of its best gain, worst"]]
    for name in methods:
        ones = [row[name] for row in found.values() if row.get(name)]
        shares = [share for one in ones if one and (share := one.share) is not None]
        for line, of in zip(lines, (np.median, min), strict=True):
            value = float(of(shares)) if shares else math.nan
            line.append(f"{value:.0%}" if math.isfinite(value) else "diverges" if shares else "")
    return lines
