"""What the command prints."""

from __future__ import annotations

import sys
from collections import Counter

from rich.console import Console
from rich.table import Table

from parity_tests.models.outcome import Outcome
from parity_tests.models.training import STEPS, Trained
from parity_tests.tolerances import GATE


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
        rows = Counter((r.kind, f"left alone: {r.reason}") for r in each.report.left)
        rows += Counter((r.kind, f"unresolved: {r.reason}") for r in each.report.unresolved)
        print(f"{each.name}/{each.library}:" + (" nothing" if not rows else ""))
        for (kind, reason), count in rows.items():
            print(f"  {count} {kind}, {reason}")


def print_trained(trained: list[Trained], wanted: int) -> None:
    """Losses and verdicts."""
    title = f"loss after {STEPS} steps of AdamW, plain -> in neuron coordinates, median of seeds"
    table = Table(title=title)
    for heading in ("network", "task", "rate", "at the rate", "", "at a tenth", "", "seconds"):
        table.add_column(heading)
    for each in trained:
        cells = [each.error, "", "", ""]
        if not each.error:
            cells = [text for pair in each.pairs for text in (pair.losses, pair.verdict)]
        table.add_row(
            each.label,
            each.task,
            f"{each.rate:.0e}",
            *cells,
            f"{each.seconds:.0f}",
            style="red" if each.worse or each.error else None,
        )
    _print(table)
    worse = [each.label for each in trained if each.worse]
    print(f"{_count(trained, wanted)}, worse at both rates: {', '.join(worse) or 'none'}")


def _print(table: Table) -> None:
    Console(width=None if sys.stdout.isatty() else 180).print(table)


def _count(done: list, wanted: int) -> str:
    return f"{len(done)} networks" + (f" of {wanted}, interrupted" if len(done) < wanted else "")
