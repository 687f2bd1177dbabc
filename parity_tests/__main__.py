"""Print the parity matrix: `python -m parity_tests`. Exit code 1 on a miss, 2 on a crash."""

from __future__ import annotations

import argparse
import sys

from rich.console import Console

from parity_tests import implementations, matrix, standard
from parity_tests.numerics import exact


def main(arguments: list[str] | None = None) -> int:
    """Parse, compare, print."""
    parser = argparse.ArgumentParser(prog="python -m parity_tests", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one shape, fewer seeds")
    parser.add_argument("--first", action="store_true", help="stop at a case that misses")
    parser.add_argument("--rows", default="", help="only rows whose name begins so")
    parser.add_argument(
        "--only",
        choices=sorted(implementations.IMPLEMENTATIONS),
        help="one framework (the other is not imported)",
    )
    chosen = parser.parse_args(arguments)
    frameworks = (chosen.only,) if chosen.only else tuple(implementations.IMPLEMENTATIONS)
    with exact(frameworks):
        columns = implementations.load(frameworks)
        every = standard.standard(quick=chosen.quick, rows=chosen.rows)
        result = matrix.build(every, columns, first=chosen.first)
    console = Console(width=None if sys.stdout.isatty() else 160)
    matrix.render(result, console)
    return result.exit_code


if __name__ == "__main__":
    sys.exit(main())
