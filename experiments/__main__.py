"""The command line: ``python -m experiments <job> [options]``."""

import sys
from typing import Any

import tyro
from tyro.conf import OmitArgPrefixes

from experiments.errors import ExperimentError
from experiments.options import (
    CompareConfig,
    DecayOptions,
    StatisticsEveryOptions,
    StepCostOptions,
    StepScaleOptions,
)

# Each job imports its code when it runs, so that --help does not wait for JAX.


def compare(config: OmitArgPrefixes[CompareConfig]) -> int:
    """Train one ReLU network under several normalization methods and compare them.

    Plain, BatchNorm, LayerNorm, BNP and the neuron-wise rule, over the same grid of learning rates
    and the same seeds. Prints one table and writes to the output folder: the table, the plots (PNG
    and SVG), one line of JSON for every run. Without options: a photograph, no network connection,
    about a minute on two cores. After an interruption the same command goes on.
    """
    from experiments.compare import run

    return run(config)


def step_scale(config: OmitArgPrefixes[StepScaleOptions]) -> int:
    """Find the best rate of networks and batch sizes under each step_scale: does one rate fit all?

    SGD with momentum in the neurons' coordinates, four rates in a decade, around the best one.
    Writes step_scale.md, .csv and .png. About half an hour on one core. After an interruption the
    same command goes on.
    """
    from experiments.studies.step_scale import StepScale

    return StepScale(config).run()


def decay(config: OmitArgPrefixes[DecayOptions]) -> int:
    """Find the right decay of the tracked statistics for each batch size, down to one sample.

    A Fashion-MNIST network with SGD and with Adam in the neurons' coordinates, and plain; each at
    its best rate. Writes decay.md, .csv and .png. About half an hour on one core. After an
    interruption the same command goes on.
    """
    from experiments.studies.decay import Decay

    return Decay(config).run()


def statistics_every(config: OmitArgPrefixes[StatisticsEveryOptions]) -> int:
    """Take statistics in some of the steps only: which schedules are safe, at which rates?

    Writes statistics_every.md, .csv and .png. About a quarter of an hour on one core. After an
    interruption the same command goes on.
    """
    from experiments.studies.statistics_every import StatisticsEvery

    return StatisticsEvery(config).run()


def step_cost(config: OmitArgPrefixes[StepCostOptions]) -> int:
    """Time a training step of a ReLU network beside the plain one, on this machine.

    Plain, BatchNorm, BNP, and the neuron-wise rule with all and with few rows in its statistics,
    taking turns; prints one table of ratios. About a minute on two cores.
    """
    from experiments.benches.step_cost import run

    return run(config.repeats)


JOBS: dict[str, Any] = {
    "compare": compare,
    "step-scale": step_scale,
    "decay": decay,
    "statistics-every": statistics_every,
    "step-cost": step_cost,
}


def main(arguments: list[str] | None = None) -> int:
    """Run the job named on the command line and return the exit status.

    Args:
        arguments: the words after ``python -m experiments``; None takes them from `sys.argv`.
    """
    try:
        return tyro.extras.subcommand_cli_from_dict(
            JOBS,
            prog="python -m experiments",
            description="Experiments with the neuron-wise rule. Each job explains itself: "
            "python -m experiments JOB --help",
            args=arguments,
        )
    except ExperimentError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped; nothing was written.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
