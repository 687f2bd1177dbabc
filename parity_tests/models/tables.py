"""What the command prints."""

from __future__ import annotations

import re
import sys
from collections import Counter

from rich.console import Console
from rich.table import Table

from parity_tests.models.outcome import Outcome
from parity_tests.models.training import STEPS, Trained
from parity_tests.tolerances import GATE

#: What is said of a network -> of several.
_GENERAL = {
    r"(?<=is shared) with .*": "",
    r"goes into .*?, which": "goes into something that",
    r"\S+ follows behind or beside .*": "an activation follows behind or beside something else",
    r"\S+ sees a sum": "an activation sees a sum",
    r"in one of \d+ calls": "in one of its calls",
    r" \(a custom .*": "",
}


def print_outcomes(outcomes: list[Outcome], wanted: int) -> None:
    """The table, then the counts."""
    table = Table(title=f"whole networks, float64, against the oracle (gate {GATE['float64']:.0e})")
    counts = ("layers", "converted", "deferred", "unresolved", "left alone")
    for heading in ("network", *counts, "worst error", "where", "not bitwise", "seconds"):
        table.add_column(heading)
    for each in outcomes:
        numbers = [""] * len(counts)
        if each.report is not None:
            report = each.report
            parts = (report.rows, report.converted, report.deferred, report.unresolved, report.left)
            numbers = [str(len(part)) for part in parts]
        table.add_row(
            f"{each.name}/{each.library}",
            *numbers,
            f"{each.error:.1e}",
            each.where,
            ", ".join(each.unequal),
            f"{each.seconds:.1f}",
            style="red" if each.miss else None,
        )
    _print(table)
    print(f"{_count(outcomes, wanted)}, {sum(o.miss for o in outcomes)} with a miss")


def print_left(outcomes: list[Outcome]) -> None:
    """Network, how many layers of which class, and the reason."""
    for each in outcomes:
        if each.report is None:
            continue
        rows = _reasons(each.report.left, "left alone: ")
        rows += _reasons(each.report.unresolved, "unresolved: ")
        print(f"{each.name}/{each.library}:" + (" nothing" if not rows else ""))
        for row in rows:
            print(f"  {row}")


def print_markdown(outcomes: list[Outcome]) -> None:
    """One row for each network, with what is left alone; then how often each reason is given."""
    print("| network | layers | converted | deferred | unresolved | worst error | left alone |")
    print("| :-- | --: | --: | --: | --: | --: | :-- |")
    for each in outcomes:
        cells = [f"{each.name}/{each.library}", *[""] * 4, f"{each.error:.1e}", ""]
        if each.report is not None:
            report = each.report
            parts = (report.rows, report.converted, report.deferred, report.unresolved)
            cells[1:5] = [str(len(part)) for part in parts]
            cells[6] = "; ".join(_reasons(report.left))
        print("| " + " | ".join(cells) + " |")
    print("\n| left alone or unresolved | layers | networks |\n| :-- | --: | --: |")
    counted: dict[str, Counter[str]] = {}
    for each in outcomes:
        for begin, rows in (("left alone", "left"), ("unresolved", "unresolved")):
            for row in getattr(each.report, rows, ()):
                reason = f"{begin}: {_in_general(row.reason)}"
                counted.setdefault(reason, Counter())[f"{each.name}/{each.library}"] += 1
    for reason, networks in sorted(counted.items(), key=lambda item: -item[1].total()):
        print(f"| {reason} | {networks.total()} | {len(networks)} |")


def _in_general(reason: str) -> str:
    """A reason without the names in it."""
    for pattern, words in _GENERAL.items():
        reason = re.sub(pattern, words, reason)
    return reason


def _reasons(rows: tuple, begin: str = "") -> list[str]:
    """How many layers of which class, and why."""
    counted = Counter((row.kind, row.reason) for row in rows)
    return [f"{count} {kind}, {begin}{why}" for (kind, why), count in counted.items()]


def print_trained(trained: list[Trained], wanted: int) -> None:
    """Losses and verdicts."""
    title = f"loss after {STEPS} steps of AdamW, plain -> in neuron coordinates, median of seeds"
    table = Table(title=title)
    for heading in ("network", "task", "rate", "loss", "verdict", "seconds"):
        table.add_column(heading)
    for each in trained:
        style = "red" if each.worse or each.error else None
        for number, pair in enumerate(each.pairs):
            names = ["", ""] if number else [each.label, each.task]
            seconds = "" if number else f"{each.seconds:.0f}"
            table.add_row(
                *names, f"{pair.rate:.0e}", pair.losses, pair.verdict, seconds, style=style
            )
        if each.error:
            table.add_row(each.label, each.task, "", each.error, style=style)
    _print(table)
    worse = [each.label for each in trained if each.worse]
    print(f"{_count(trained, wanted)}, worse at all rates: {', '.join(worse) or 'none'}")


def _print(table: Table) -> None:
    Console(width=None if sys.stdout.isatty() else 180).print(table)


def _count(done: list, wanted: int) -> str:
    return f"{len(done)} networks" + (f" of {wanted}, interrupted" if len(done) < wanted else "")
