"""Run random situations: `python -m parity_tests.situations`."""

from __future__ import annotations

import sys

from parity_tests import requirements


def main(arguments: list[str] | None = None) -> int:
    """Parse, run, print; see `situations.command` for the exit codes."""
    try:
        requirements.require(*requirements.COMMON)
        from parity_tests.situations import command

        return command.run(arguments)
    except requirements.Missing as error:
        print(f"parity_tests.situations: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted before anything was compared", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
