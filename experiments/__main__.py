"""The command line: ``python -m experiments <job> [options]``."""

import sys
from pathlib import Path
from typing import Literal, get_args

import tyro

from experiments.errors import ExperimentError
from experiments.options import CompareConfig


def compare(config: tyro.conf.OmitArgPrefixes[CompareConfig]) -> int:
    """Train one ReLU network under several normalization methods and compare them.

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
    from experiments.benches.step_cost import run

    return run(repeats)


TaskName = Literal["photo", "mlp", "convnet"]
FormName = Literal["none", "bnp", "fan_in", "eigenvalue", "no_positions", "noise"]


def rates(
    tasks: tuple[TaskName, ...] = ("photo", "mlp", "convnet"),
    batch_sizes: tuple[Literal[32, 128, 256, 1024], ...] = (32, 128, 256, 1024),
    forms: tuple[FormName, ...] = get_args(FormName),
    seeds: int = 2,
    data_dir: Path | None = None,
    out: Path = Path("results/rates"),
) -> int:
    """Find the best rate of networks and batch sizes under each step_scale: does one rate fit all?

    SGD with momentum in the neurons' coordinates, four rates in a decade, around the best one.
    Writes rates.md, rates.csv and rates.png. About half an hour on one core.

    Args:
        tasks: which networks; photo needs no data.
        batch_sizes: which.
        forms: which; the first four are the step_scale of jaxnorm.Rule, the others were tried.
        seeds: of each run.
        data_dir: folder with Fashion-MNIST, as for compare.
        out: folder for the results.
    """
    from experiments.studies.step_scale import run

    return run(tasks, batch_sizes, forms, seeds, data_dir, out)


def small_batches(
    batch_sizes: tuple[Literal[1, 4, 16, 64, 256], ...] = (1, 4, 16, 64, 256),
    inners: tuple[Literal["sgd", "adam"], ...] = ("sgd", "adam"),
    seeds: int = 1,
    data_dir: Path | None = None,
    out: Path = Path("results/small_batches"),
) -> int:
    """Find the right decay of the tracked statistics for each batch size, down to one sample.

    A Fashion-MNIST network with SGD and with Adam in the neurons' coordinates, and plain; each at
    its best rate. Writes small_batches.md, .csv and .png. About half an hour on one core.

    Args:
        batch_sizes: which.
        inners: which optimizers.
        seeds: of each run.
        data_dir: folder with Fashion-MNIST, as for compare.
        out: folder for the results.
    """
    from experiments.studies.decay import run

    return run(batch_sizes, inners, seeds, data_dir, out)


def thinning(
    tasks: tuple[TaskName, ...] = ("photo", "mlp"),
    seeds: int = 1,
    data_dir: Path | None = None,
    out: Path = Path("results/thinning"),
) -> int:
    """Take statistics in some of the steps only: which schedules are safe, at which rates?

    Writes thinning.md, thinning.csv and thinning.png. About a quarter of an hour on one core.

    Args:
        tasks: which networks; photo needs no data.
        seeds: of each run.
        data_dir: folder with Fashion-MNIST, as for compare.
        out: folder for the results.
    """
    from experiments.studies.statistics_every import run

    return run(tasks, seeds, data_dir, out)


def main(arguments: list[str] | None = None) -> int:
    """Run the job named on the command line and return the exit status.

    Args:
        arguments: the words after ``python -m experiments``; None takes them from `sys.argv`.
    """
    try:
        return tyro.extras.subcommand_cli_from_dict(
            {
                "compare": compare,
                "step-cost": step_cost,
                "rates": rates,
                "small-batches": small_batches,
                "thinning": thinning,
            },
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
