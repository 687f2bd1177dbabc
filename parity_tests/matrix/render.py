"""The matrix as tables."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from parity_tests.matrix import compare
from parity_tests.matrix.build import Matrix
from parity_tests.matrix.compare import Finding
from parity_tests.tolerances import GATE

#: How many misses are printed in words.
MESSAGES = 20


def _cell(found: list[Finding] | None) -> str:
    """The finding closest to (or furthest above) its gate, in color; None: no such operation."""
    if found is None:
        return ""
    if not found:
        return "[red]crash[/]"
    worst = max(found, key=lambda f: f.error / f.gate)
    color = "red" if worst.miss else "green"
    return f"[{color}]{worst.error:.1e}[/] {worst.quantity}"


def render(matrix: Matrix, console: Console) -> None:
    """Print the table by family, the table by quantity, then every miss."""
    columns = list(dict.fromkeys(column for _, column in matrix.findings))
    rows = list(dict.fromkeys(row for row, _ in matrix.findings))
    gates = ", ".join(f"{dtype} {gate:.0e}" for dtype, gate in GATE.items())
    table = Table(title=f"worst error of a slice, see parity_tests/tolerances.py (gates: {gates})")
    for heading in ("cases", *columns):
        table.add_column(heading)
    for row in rows:
        table.add_row(row, *(_cell(matrix.findings.get((row, column))) for column in columns))
    console.print(table)

    table = Table(title="worst error by quantity")
    for heading in ("quantity", *columns):
        table.add_column(heading)
    found = {f.quantity for found in matrix.findings.values() for f in found}
    for quantity in (*compare.QUANTITIES, *sorted(found - {*compare.QUANTITIES})):
        for gate in sorted({f.gate for found in matrix.findings.values() for f in found}):
            cells = []
            for column in columns:
                every = [
                    f for (_, c), found in matrix.findings.items() if c == column for f in found
                ]
                chosen = [f for f in every if f.quantity == quantity and f.gate == gate]
                cells.append(_cell(chosen).split(" ")[0] if chosen else "")
            if any(cells):
                table.add_row(f"{quantity} ({gate:.0e})", *cells)
    console.print(table)
    shown = matrix.messages[:MESSAGES]
    if len(matrix.messages) > MESSAGES:
        shown.append(f"... and {len(matrix.messages) - MESSAGES} more")
    for message in shown:
        console.print(message, markup=False, highlight=False, soft_wrap=True)
    counts = f"{matrix.misses} out of their gate, {matrix.crashes} crashed"
    end = "; interrupted" if matrix.interrupted else ""
    console.print(f"{matrix.comparisons} comparisons, {counts}{end}", highlight=False)
