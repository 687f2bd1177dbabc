"""The whole matrix: case families times implementations, the worst error against its gate."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

from rich.console import Console
from rich.table import Table

from parity_tests import compare
from parity_tests.cases import Case
from parity_tests.compare import Finding
from parity_tests.implementations import Implementation
from parity_tests.tolerances import GATE

#: The column in which the two functional forms are compared without the oracle in between.
DIRECT = "jax = torch"

#: How many misses are printed in words.
MESSAGES = 20


@dataclass
class Matrix:
    """Every finding, by row (case family) and column (implementation)."""

    findings: dict[tuple[str, str], list[Finding]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    crashes: int = 0

    @property
    def misses(self) -> int:
        """How many quantities are further off than they may be."""
        return sum(f.miss for found in self.findings.values() for f in found)

    @property
    def comparisons(self) -> int:
        """How many quantities were compared."""
        return sum(len(found) for found in self.findings.values())

    @property
    def exit_code(self) -> int:
        """0: all within their gates; 1: a miss; 2: an implementation raised."""
        return 2 if self.crashes else int(self.misses > 0)

    def record(self, row: str, column: str, case: Case, run: Callable[[], list[Finding]]) -> None:
        """Run one comparison and file what it finds, also if it raises."""
        found = self.findings.setdefault((row, column), [])
        try:
            new = run()
        except Exception as error:  # a matrix with a hole says more than a traceback
            self.crashes += 1
            self.messages.append(f"crash: {column}, {row}, {_knobs(case)}: {error!r}")
            return
        found += new
        for f in compare.misses(new):
            off = f"{f.quantity} is off by {f.error:.1e} > {f.gate:.0e}"
            self.messages.append(f"miss: {column}, {row}, {_knobs(case)}: {off}")


def _knobs(case: Case) -> str:
    """The case in words: its gate and every knob that is not at its default."""
    default = vars(type(case.knobs)())
    changed = [
        f"{name}={value}" for name, value in vars(case.knobs).items() if value != default[name]
    ]
    return " ".join([f"gate={case.gate}", *changed])


def build(
    cases: Iterable[tuple[str, Case]], implementations: list[Implementation], *, first: bool = False
) -> Matrix:
    """Compare everything with the oracle, and the two frameworks with each other.

    Args:
        cases: each with the row it belongs to.
        implementations: the columns.
        first: stop after the first case that misses.
    """
    matrix = Matrix()
    functional = [i for i in implementations if i.name.endswith("functional")]
    for row, case in cases:
        able = [each for each in implementations if each.supports(case)]
        for each in able:
            matrix.record(row, each.name, case, partial(compare.examine, case, each))
        if len(functional) == 2 and set(functional) <= set(able):
            matrix.record(row, DIRECT, case, partial(_direct, case, *functional))
        if first and matrix.misses:
            break
    return matrix


def _direct(case: Case, one: Implementation, other: Implementation) -> list[Finding]:
    """Two implementations without the oracle in between."""
    return compare.gradients(case, one.gradients(case), other.gradients(case))


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
    table = Table(title=f"worst error of a slice (gates: {gates})")
    for heading in ("cases", *columns):
        table.add_column(heading)
    for row in rows:
        table.add_row(row, *(_cell(matrix.findings.get((row, column))) for column in columns))
    console.print(table)

    table = Table(title="worst error by quantity")
    for heading in ("quantity", *columns):
        table.add_column(heading)
    for quantity in compare.QUANTITIES:
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
    console.print(f"{matrix.comparisons} comparisons, {counts}", highlight=False)
