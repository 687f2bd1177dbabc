"""Compare the oracle with every golden file: `python -m parity_tests.golden`. 1 on a miss."""

from __future__ import annotations

import sys

from parity_tests import golden
from parity_tests.tolerances import GATE


def main() -> int:
    """One line for each file."""
    worst = 0.0
    for name in golden.names():
        errors = golden.errors(golden.read(name))
        print(f"{name:10}", *(f"{key} {error:.1e}" for key, error in errors.items()), sep="  ")
        worst = max(worst, *errors.values())
    print(f"{len(golden.names())} files, worst error {worst:.1e}, gate {GATE['float64']:.0e}")
    return int(not worst <= GATE["float64"])


if __name__ == "__main__":
    sys.exit(main())
