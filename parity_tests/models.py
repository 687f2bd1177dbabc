"""Print the table of whole networks: `python -m parity_tests.models`. Exit code 1 on a miss."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import Any

from parity_tests.numerics import exact
from parity_tests.tolerances import GATE

FRAMEWORKS = ("torch", "jax")
COLUMNS = (
    "model",
    "framework",
    "layers",
    "converted",
    "deferred",
    "unresolved",
    "left alone",
    "worst error",
    "where",
    "not bitwise",
)


def rows() -> list[dict[str, Any]]:
    """The rows of every framework whose models are here."""
    table: list[dict[str, Any]] = []
    for framework in FRAMEWORKS:
        name = f"parity_tests.models_{framework}"
        if importlib.util.find_spec(name) is not None:
            with exact((framework,)):
                table += importlib.import_module(name).rows()
    return table


def _missed(row: dict[str, Any]) -> bool:
    return row.get("worst error", 0.0) > GATE["float64"] or bool(row.get("not bitwise"))


def _cell(row: dict[str, Any], column: str) -> str:
    value = row.get(column, "")
    return f"{value:.1e}" if isinstance(value, float) else str(value)


def _plain(table: list[dict[str, Any]]) -> None:
    lines = [COLUMNS, *(tuple(_cell(row, column) for column in COLUMNS) for row in table)]
    widths = [max(len(line[k]) for line in lines) for k in range(len(COLUMNS))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))


def _rich(table: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=f"whole networks, float64, against the oracle (gate {GATE['float64']:.0e})")
    for column in COLUMNS:
        shown.add_column(column)
    for row in table:
        style = "red" if _missed(row) else None
        shown.add_row(*(_cell(row, column) for column in COLUMNS), style=style)
    Console(width=None if sys.stdout.isatty() else 180).print(shown)


def main() -> int:
    """Measure and print."""
    table = rows()
    if importlib.util.find_spec("rich") is None:
        _plain(table)
    else:
        _rich(table)
    misses = sum(_missed(row) for row in table)
    print(f"{len(table)} networks, {misses} with a miss")
    return 1 if misses else 0


if __name__ == "__main__":
    sys.exit(main())
