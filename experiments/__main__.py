"""The command line: ``python -m experiments <job> [options]``."""

import pkgutil
import sys

import tyro

from experiments.errors import ExperimentError
from experiments.jobs import JOBS

#: Modules that some jobs need beside the extra [experiments], and the extra that brings each.
EXTRAS = {"torch": "torch", "gymnax": "rl", "six": "rl"}


def main(arguments: list[str] | None = None) -> int:
    """Run the job named on the command line and return the exit status.

    Args:
        arguments: the words after ``python -m experiments``; None takes them from `sys.argv`.
    """
    try:
        options = tyro.extras.subcommand_cli_from_dict(
            JOBS,
            prog="python -m experiments",
            description="Experiments with the neuron-wise rule. Each job explains itself: "
            "python -m experiments JOB --help",
            args=arguments,
        )
        return pkgutil.resolve_name(options.job)(options)
    except ExperimentError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        wanted = f"'neuronwise-norm[experiments,{EXTRAS[error.name]}]'"
        print(
            f"error: got no module {error.name}, which this job needs; pip install {wanted}",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("Stopped; nothing was written.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
