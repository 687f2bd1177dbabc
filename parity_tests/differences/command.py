"""The page of all rows."""

from __future__ import annotations

import argparse

from parity_tests.differences import functions, layers, normalizers
from parity_tests.differences.row import Row, table
from parity_tests.numerics import exact

TABLES: dict[str, list[Row]] = {
    "Normalizers": normalizers.ROWS,
    "Layers": layers.ROWS,
    "Functions, losses, optimizers": functions.ROWS,
    "The same, against expectation": functions.SAME,
}

INTRODUCTION = """\
# Where Flax and PyTorch differ

Both frameworks as they come (the versions of `constraints.txt`), each number measured, on the CPU,
in float64 where nothing else is said. `python -m parity_tests.differences` prints this page, and
`test_framework_differences.py` measures every row again, so that it fails the day a framework
changes. An error is printed as its class. "Ours" are the layers of `jaxnorm.linen.normalizers`,
`jaxnorm.nnx.normalizers` and `torchnorm.normalizers`.
"""


def page() -> str:
    """All of it, measured now."""
    with exact():
        parts = [f"## {title}\n\n{table(rows)}\n" for title, rows in TABLES.items()]
    return "\n".join([INTRODUCTION, *parts])


def main(arguments: list[str] | None = None) -> None:
    """Print the page."""
    argparse.ArgumentParser(
        "python -m parity_tests.differences", description="Print parity_tests/DIFFERENCES.md."
    ).parse_args(arguments)
    print(page(), end="")
