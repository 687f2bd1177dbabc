"""The tables of `sensitivity`: settings down, methods across."""

import math
from typing import Any, NamedTuple

import numpy as np

from experiments.report.tables import Table
from experiments.studies.grid import rate_of
from experiments.studies.settings import ENTRIES, PROBLEMS, VARIATIONS
from experiments.studies.study import Result, grouped

NOTES = (
    "Final training loss at the best rate of a grid half a decade apart, mean over the seeds, in "
    "brackets that rate. Plain: the loss itself; the others: over plain's in the same setting, ± "
    "the standard error of the difference seed by seed; knobs of the rule: over plain's with "
    "nothing varied. What does not vary is as in the first row.\n\n"
)


class Ratio(NamedTuple):
    """A loss over plain's.

    Attributes:
        mean: inf where the method diverges at every rate, nan where plain does.
        error: standard error, over the seeds.
        rate: the best one; nan where there is none.
    """

    mean: float
    error: float
    rate: float


def make(results: list[Result]) -> list[Table]:
    """A table for each problem."""
    tables = []
    for problem, some in grouped(results, "problem").items():
        of = {result.cell[1:]: result for result in some}
        rows = []
        for varied, value in dict.fromkeys((r.cell.varied, r.cell.value) for r in some):
            cells = [_shown(of, varied, value, method) for method in ENTRIES]
            name = "as it is" if varied == "nothing" else f"{VARIATIONS[varied].title}: {value}"
            rows.append([name, *cells])
        headings = [PROBLEMS[problem].title, *(ENTRIES[name].title for name in ENTRIES)]
        tables.append(Table(headings, rows))
    return tables


def ratio(of: dict[tuple[str, Any, str], Result], varied: str, value: Any, method: str) -> Ratio:
    """A method over the plain network, which has no knobs of the rule.

    Args:
        of: by what varied, its value, and the method; of one problem.
        varied: see `Cell`.
        value: likewise.
        method: likewise.
    """
    result = of[varied, value, method]
    plain = of.get((varied, value, "plain")) or of["nothing", "", "plain"]
    rate = rate_of(result.best) if math.isfinite(result.loss) else math.nan
    if not math.isfinite(plain.loss):
        return Ratio(math.nan, math.nan, rate)
    if not math.isfinite(result.loss):
        return Ratio(math.inf, math.nan, rate)
    ours, theirs = (np.array(one.finals[one.best]) for one in (result, plain))
    spread = (ours - theirs).std(ddof=1) if len(ours) > 1 else math.nan
    return Ratio(result.loss / plain.loss, spread / math.sqrt(len(ours)) / plain.loss, rate)


def _shown(of: dict[tuple[str, Any, str], Result], varied: str, value: Any, method: str) -> str:
    if (varied, value, method) not in of:
        return ""
    found = ratio(of, varied, value, method)
    if math.isnan(found.rate):
        return "diverges"
    if method == "plain":
        return f"{of[varied, value, method].loss:.3g} ({found.rate:.2g})"
    if math.isnan(found.mean):
        return f"trains, plain does not ({found.rate:.2g})"
    digits = ".2f" if found.mean >= 0.1 else ".2g"
    error = "" if math.isnan(found.error) else f" ± {found.error:{digits}}"
    return f"{found.mean:{digits}}{error} ({found.rate:.2g})"
