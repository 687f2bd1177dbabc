"""Compare a Flax model with a PyTorch model: `python -m parity_tests.port`."""

from __future__ import annotations

import sys

from parity_tests import requirements


def main(arguments: list[str] | None = None) -> int:
    """Parse, compare, print; see `port.command` for the exit codes."""
    try:
        modules = (*requirements.COMMON, *requirements.FRAMEWORKS["jax"])
        requirements.require(*modules, *requirements.FRAMEWORKS["torch"])
        from parity_tests.port import command

        return command.run(arguments)
    except requirements.Missing as error:
        print(f"parity_tests.port: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted before anything was compared", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
