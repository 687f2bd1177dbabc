"""The command line: ``python -m experiments <job> [options]``."""

import sys

import tyro

from experiments.config import CompareConfig
from experiments.errors import ExperimentError


def compare(config: tyro.conf.OmitArgPrefixes[CompareConfig]) -> int:
    """Train one ReLU network under several normalisation methods and compare them.

    Plain, BatchNorm, LayerNorm, BNP and the neuron-wise rule,
    over the same grid of learning rates and the same seeds, with SGD and momentum.
    Prints one table and writes to the output folder: the table, the plots (PNG and SVG),
    one line of JSON for every run. Without options: a photograph, no network connection,
    about a minute on two cores.
    """
    # Imported here, so that --help does not wait for JAX.
    from experiments.compare import run

    return run(config)


def step_cost(repeats: int = 15) -> int:
    """Time a training step of a ReLU network beside the plain one, on this machine.

    Plain, BatchNorm, BNP, and the neuron-wise rule with all and with few rows in its statistics,
    taking turns; prints one table of ratios. About a minute on two cores.

    Args:
        repeats: how often each step is timed; the median counts.
    """
    from experiments.step_cost import run

    return run(repeats)


def main(arguments: list[str] | None = None) -> int:
    """Run the job named on the command line and return the exit status.

    Args:
        arguments: the words after ``python -m experiments``; None takes them from `sys.argv`.
    """
    try:
        return tyro.extras.subcommand_cli_from_dict(
            {"compare": compare, "step-cost": step_cost},
            prog="python -m experiments",
            description="Experiments with the neuron-wise rule. Each job explains itself: "
            "python -m experiments JOB --help",
            args=arguments,
        )
    except ExperimentError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
