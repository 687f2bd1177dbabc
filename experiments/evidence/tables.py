"""The tables of the evidence: problems down, methods across."""

import math
from collections.abc import Callable, Iterable

import numpy as np

from experiments.evidence.entries import ENTRIES
from experiments.evidence.judge import holm
from experiments.evidence.outcomes import Found, outcomes
from experiments.evidence.problems import PROBLEMS
from experiments.report.tables import Table
from experiments.studies.study import Result

NOTES = (
    "Medians over ten seeds at each method's best rate; `!`: that rate lies at the edge of the "
    "grid; never: more than half of the seeds miss the target, which the best of plain, BatchNorm "
    "and LayerNorm sets. In brackets 95 % by bootstrap over the seeds. See PROTOCOL.md.\n\n"
)

OURS = "neuronwise"

#: Those of the first table of each kind.
MAIN = (
    "plain",
    "batchnorm",
    "layernorm",
    "groupnorm",
    "centralize",
    "muon",
    "bnp",
    OURS,
)

#: Problem -> method -> seconds of a step.
Seconds = dict[str, dict[str, float]]


def make(results: Iterable[Result], seconds: Seconds | None = None) -> list[Table]:
    """All tables, fresh problems and known ones apart; problems without their baselines wait.

    Args:
        results: of a sweep.
        seconds: of a step, by problem and method, as far as they are known.
    """
    found = outcomes(results)
    tables = []
    for fresh, group in ((True, "fresh"), (False, "known")):
        some = {name: each for name, each in found.items() if PROBLEMS[name].fresh == fresh}
        if some:
            tables += [
                _summary(f"{group}: every method, over the problems of the default rule", some),
                _duel(f"{group}: neuron-wise against plain and the best baseline", some),
                *_matrices(f"{group}: final training loss over the best baseline's", some, _loss),
                *_matrices(f"{group}: steps to the target over the best baseline's", some, _steps),
                *_seconds_table(
                    f"{group}: seconds to the target over the best baseline's", some, seconds
                ),
                *_matrices(f"{group}: test figure", some, _test),
            ]
    return tables


def _summary(title: str, found: dict[str, Found]) -> Table:
    """A row for each method, the smallest median of its losses over the default's first.

    Only of problems on which that was run: a method that was run on fewer, easier ones is compared
    with it on those.
    """
    found = {name: each for name, each in found.items() if OURS in each.outcomes}
    rows = {}
    for name in methods_of(found):
        some = [each for each in found.values() if {name, "plain"} <= each.outcomes.keys()]
        over_ours = [each.loss_ratio(name, OURS)[0] for each in some]
        over_plain = [each.loss_ratio(name, "plain")[0] for each in some]
        over_best = [each.loss_ratio(name, each.best)[0] for each in some]
        steps = [_steps(each, name)[1] for each in some]
        if some:
            rows[name] = (
                float(np.median(over_ours)),
                [
                    str(len(some)),
                    _number(float(np.median(over_ours))),
                    f"{sum(ratio < 1 for ratio in over_ours)}",
                    _number(float(np.median(over_plain))),
                    f"{sum(ratio < 1 for ratio in over_plain)}",
                    f"{sum(ratio < 1 for ratio in over_best)}",
                    f"{sum(map(math.isfinite, steps))}",
                    _number(float(np.median(steps))),
                ],
            )
    order = sorted(rows, key=lambda name: rows[name][0])
    headings = (
        "method",
        "problems",
        "median loss over neuron-wise's",
        "lower than that",
        "median loss over plain's",
        "lower than plain's",
        "lower than the best baseline's",
        "reaches the target",
        "median steps over the best baseline's",
    )
    return Table(headings, [[_title(name), *rows[name][1]] for name in order], title)


def _title(method: str) -> str:
    title = ENTRIES[method].title
    return f"**{title}**" if method == OURS else title


def _matrices(
    title: str, found: dict[str, Found], cell: Callable[[Found, str], tuple[str, float]]
) -> list[Table]:
    """One of the methods that most readers ask for, one of the others beside the default."""
    others = [name for name in methods_of(found) if name not in MAIN]
    tables = [_matrix(title, found, cell, [name for name in methods_of(found) if name in MAIN])]
    if others:
        tables.append(_matrix(f"{title}, further methods", found, cell, [*others, OURS]))
    return tables


def methods_of(found: dict[str, Found]) -> list[str]:
    """Those that are there, in order."""
    return [name for name in ENTRIES if any(name in each.outcomes for each in found.values())]


def _matrix(
    title: str,
    found: dict[str, Found],
    cell: Callable[[Found, str], tuple[str, float]],
    methods: list[str],
) -> Table:
    rows = []
    values: dict[str, list[float]] = {name: [] for name in methods}
    for problem, each in found.items():
        cells = []
        for name in methods:
            text, value = cell(each, name) if name in each.outcomes else ("", math.nan)
            if not math.isnan(value):
                values[name].append(value)
            cells.append(text)
        rows.append([PROBLEMS[problem].title, *cells])
    if any(values.values()):
        medians = [_number(float(np.median(v))) if v else "" for v in values.values()]
        rows.append(["median of the problems", *medians])
    return Table(("problem", *(ENTRIES[name].title for name in methods)), rows, title)


def _loss(found: Found, method: str) -> tuple[str, float]:
    ratio, _, _ = found.loss_ratio(method, found.best)
    return _number(ratio) + "!" * found.outcomes[method].at_edge, ratio


def _steps(found: Found, method: str) -> tuple[str, float]:
    steps = float(np.median(found.outcomes[method].steps))
    best = float(np.median(found.outcomes[found.best].steps))
    return ("never", math.inf) if math.isinf(steps) else (_number(steps / best), steps / best)


def _seconds_table(title: str, found: dict[str, Found], seconds: Seconds | None) -> list[Table]:
    """One, of the problems and methods that were timed; none if there are none."""
    known = {name: seconds[name] for name in found if seconds and name in seconds}
    if not known:
        return []
    of = {id(found[name]): each for name, each in known.items()}

    def cell(one: Found, method: str) -> tuple[str, float]:
        each, (_, steps) = of[id(one)], _steps(one, method)
        if method not in each or one.best not in each:
            return "", math.nan
        ratio = steps * each[method] / each[one.best]
        return _number(ratio), ratio

    some = {name: found[name] for name in known}
    timed = [name for name in methods_of(some) if any(name in each for each in known.values())]
    return [_matrix(title, some, cell, timed)]


def _test(found: Found, method: str) -> tuple[str, float]:
    tests = [value for value in found.outcomes[method].tests if not math.isnan(value)]
    lost = len(found.outcomes[method].tests) - len(tests)
    shown = f"{np.median(tests):.4g}" if tests else "diverges"
    return shown + (f" ({lost} lost)" if lost and tests else ""), math.nan


def _duel(title: str, found: dict[str, Found]) -> Table:
    some = {name: each for name, each in found.items() if OURS in each.outcomes}
    adjusted = holm({name: each.p_value(OURS, each.best) for name, each in some.items()})
    rows = []
    for problem, each in some.items():
        plain = each.loss_ratio(OURS, "plain") if "plain" in each.outcomes else (math.nan,) * 3
        rows.append(
            [
                PROBLEMS[problem].title,
                _interval(plain),
                ENTRIES[each.best].title,
                _interval(each.loss_ratio(OURS, each.best)),
                f"{adjusted[problem]:.2g}",
                _interval(each.steps_ratio(OURS, each.best)),
                " / ".join(
                    _test(each, name)[0] if name in each.outcomes else ""
                    for name in (OURS, "plain", each.best)
                ),
            ]
        )
    headings = (
        "problem",
        "loss over plain's",
        "best baseline",
        "loss over its",
        "p (Holm)",
        "steps over its",
        "test figure / plain's / its",
    )
    return Table(headings, rows, title)


def _interval(values: Iterable[float]) -> str:
    middle, low, high = map(_number, values)
    return f"{middle} ({low} to {high})"


def _number(value: float) -> str:
    return "never" if math.isinf(value) else "" if math.isnan(value) else f"{value:.3g}"
