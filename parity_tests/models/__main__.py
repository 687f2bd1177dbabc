"""Print the table of whole networks: `python -m parity_tests.models`."""

from __future__ import annotations

import sys

from parity_tests import requirements


def main(arguments: list[str] | None = None) -> int:
    """Parse, measure, print; see `models.command` for the exit codes."""
    try:
        requirements.require(*requirements.COMMON)
        from parity_tests.models import command

        return command.run(arguments)
    except requirements.Missing as error:
        print(f"parity_tests.models: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted before anything was measured", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
