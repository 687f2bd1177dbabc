"""The options of every job, and what is wrong with those that cannot work."""

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro

from experiments.errors import ConfigError
from experiments.workloads import WORKLOADS

WorkloadName = Literal["photo", "digits", "fashion_mnist"]
MethodName = Literal["plain", "batchnorm", "layernorm", "bnp", "neuronwise", "unwrapped"]
OptimizerName = Literal["sgd", "adam"]
TaskName = Literal["photo", "mlp", "convnet"]
FormName = Literal["none", "bnp", "fan_in", "eigenvalue", "no_positions", "noise"]

ADAM_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
"""Learning rates for Adam, whose steps do not scale with the gradient, on any workload."""


def _help(text: str) -> Any:
    return tyro.conf.arg(help=text)


def _open(text: str, metavar: str, field: str | None = None, default: str = "") -> Any:
    """Help for an option that is None by default: what it is, and what None comes to.

    Args:
        text: what the option is.
        metavar: what stands for the value in the help.
        field: the field of the workloads' defaults that is taken; their values are listed.
        default: where there is no such field, what is taken.
    """
    for name, workload in WORKLOADS.items():
        if field is None:
            break
        value = getattr(workload.defaults, field)
        shown = " ".join(f"{v:g}" for v in value) if isinstance(value, tuple) else f"{value:g}"
        default += f"{'; ' if default else ''}{name} {shown}"
    return tyro.conf.arg(help=text, metavar=metavar, help_behavior_hint=f"(default: {default})")


DataDir = Annotated[
    Path | None,
    _open(
        "Folder with the data of fashion_mnist (fashion_mnist.npz, or the four official .gz "
        "files). It is only read.",
        "PATH",
        default="the folder that the variable JAXNORM_DATA names; without it, a download into "
        "the user's cache folder",
    ),
]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What all options have in common: whole numbers count something, names are known ones."""

    def __post_init__(self) -> None:
        """Refuse what cannot work, with the reason."""
        for name, hint in get_type_hints(type(self)).items():
            value, flag = getattr(self, name), "--" + name.replace("_", "-")
            if isinstance(value, int) and value < 1 and name != "parallel_rates":
                raise ConfigError(f"{flag}: got {value}, expected at least 1")
            if isinstance(value, tuple) and (not value or len(set(value)) < len(value)):
                raise ConfigError(f"{flag}: got {value}, expected one or more, each once")
            while get_origin(hint) is tuple:
                hint = get_args(hint)[0]
            for choice in value if isinstance(value, tuple) else (value,):
                if get_origin(hint) is Literal and choice not in get_args(hint):
                    known = ", ".join(map(str, get_args(hint)))
                    raise ConfigError(f"{flag}: got {choice!r}, expected one of {known}")


# tyro shows the texts below as they stand, so each paragraph is one line for it to wrap.


@dataclass(frozen=True, kw_only=True)
class CompareConfig(Options):
    """The same network, minibatches and rates for every method."""

    workload: Annotated[
        WorkloadName,
        _help(
            "What to learn. photo: coordinates -> colors of scikit-learn's sample photograph. "
            "digits: scikit-learn's 8x8 digits. fashion_mnist: from a folder (see --data-dir), or "
            "downloaded once."
        ),
    ] = "photo"
    methods: Annotated[
        tuple[MethodName, ...],
        _help(
            "Which methods, in this order. batchnorm and layernorm stand before each ReLU; bnp "
            "and neuronwise change the gradient only; unwrapped gives the optimizer the gradient "
            "that is right for SGD, whichever it is."
        ),
    ] = get_args(MethodName)[:-1]
    optimizer: Annotated[
        OptimizerName,
        _help(
            "sgd, with momentum, or adam. bnp and neuronwise run it in the neurons' coordinates."
        ),
    ] = "sgd"
    rates: Annotated[
        tuple[float, ...] | None,
        _open(
            "Learning rates, the same for every method; with adam by default "
            + " ".join(f"{rate:g}" for rate in ADAM_RATES)
            + ".",
            "FLOAT [FLOAT ...]",
            "rates",
        ),
    ] = None
    seeds: Annotated[
        int,
        _help("Number of seeds; they are 0, 1, ... A seed fixes initial weights and minibatches."),
    ] = 3
    steps: Annotated[int | None, _open("Optimizer steps of a run.", "INT", "steps")] = None
    batch_size: Annotated[int | None, _open("Samples in a step.", "INT", "batch_size")] = None
    width: Annotated[int | None, _open("Neurons in a hidden layer.", "INT", "width")] = None
    depth: Annotated[int | None, _open("Number of hidden layers.", "INT", "depth")] = None
    momentum: Annotated[
        float,
        _help("Momentum of SGD: the share of the old step that is kept. The rate is constant."),
    ] = 0.9
    target_loss: Annotated[
        float | None,
        _open(
            "Training loss for the column 'steps to loss': about where the plain network ends at "
            "its best rate.",
            "FLOAT",
            "target_loss",
        ),
    ] = None
    window: Annotated[
        int,
        _help(
            "Steps in the running mean of the minibatch loss that is held against the target and "
            "drawn as the learning curve."
        ),
    ] = 20
    tail: Annotated[
        float,
        _help(
            "Share of the steps, at the end, whose mean minibatch loss is the final training loss."
        ),
    ] = 0.05
    parallel_rates: Annotated[
        int,
        _help(
            "Train at most so many rates at once, all seeds of each; 0: all rates. For when all "
            "runs of a method together need too much memory."
        ),
    ] = 0
    data_dir: DataDir = None
    out: Annotated[
        Path | None,
        _open(
            "Folder for the results. Runs of the same options that it holds are not trained "
            "again; a folder with runs of other options is refused.",
            "PATH",
            default="results/<workload>, with adam results/<workload>_adam",
        ),
    ] = None

    def __post_init__(self) -> None:
        """Refuse what cannot work, with the reason."""
        super().__post_init__()
        if self.parallel_rates < 0:
            raise ConfigError(f"--parallel-rates: got {self.parallel_rates}, expected 0 or more")
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"--momentum: got {self.momentum}, expected a number in [0, 1)")
        if not 0 < self.tail <= 1:
            raise ConfigError(f"--tail: got {self.tail}, expected a number in (0, 1]")
        if self.target_loss is not None and not math.isfinite(self.target_loss):
            raise ConfigError(f"--target-loss: got {self.target_loss}, expected a finite number")
        for rate in self.rates or ():
            if not (math.isfinite(rate) and rate > 0):
                raise ConfigError(f"--rates: got {rate}, expected positive numbers")

    def resolved(self) -> "Plan":
        """What is to be done: the workload's value for every option left open."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        defaults = WORKLOADS[self.workload].defaults
        adam = self.optimizer == "adam"
        if adam and self.rates is None:
            given["rates"] = ADAM_RATES
        for name, value in given.items():
            if value is None and hasattr(defaults, name):
                given[name] = getattr(defaults, name)
        given["rates"] = tuple(sorted(given["rates"]))
        given["out"] = self.out or Path("results") / (self.workload + "_adam" * adam)
        return Plan(**given)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A `CompareConfig` with nothing left open; the rates ascend."""

    workload: WorkloadName
    methods: tuple[MethodName, ...]
    optimizer: OptimizerName
    rates: tuple[float, ...]
    seeds: int
    steps: int
    batch_size: int
    width: int
    depth: int
    momentum: float
    target_loss: float
    window: int
    tail: float
    parallel_rates: int
    data_dir: Path | None
    out: Path

    @property
    def tail_steps(self) -> int:
        """Number of last steps whose mean loss is the final training loss."""
        return max(1, round(self.tail * self.steps))

    @property
    def training(self) -> dict[str, Any]:
        """The options that the runs of a method depend on, as JSON has them."""
        names = ("workload", "optimizer", "rates", "seeds", "steps", "batch_size", "width", "depth")
        options = {name: getattr(self, name) for name in names} | {"rates": list(self.rates)}
        return options | ({"momentum": self.momentum} if self.optimizer == "sgd" else {})


Seeds = Annotated[int, _help("Number of seeds of each run; they are 0, 1, ...")]
Out = Annotated[
    Path, _help("Folder for the results. What was trained for it before is not trained again.")
]
Tasks = Annotated[tuple[TaskName, ...], _help("Which networks; photo needs no data.")]


@dataclass(frozen=True, kw_only=True)
class StudyOptions(Options):
    """What every study asks."""

    seeds: Seeds = 1
    data_dir: DataDir = None
    out: Out = Path("results")


@dataclass(frozen=True, kw_only=True)
class StepScaleOptions(StudyOptions):
    """Networks, batch sizes, forms."""

    tasks: Tasks = ("photo", "mlp", "convnet")
    batch_sizes: Annotated[tuple[Literal[32, 128, 256, 1024], ...], _help("Which batch sizes.")] = (
        32,
        128,
        256,
        1024,
    )
    forms: Annotated[
        tuple[FormName, ...],
        _help("Which divisors; the first four are the step_scale of jaxnorm.Rule."),
    ] = ("none", "bnp", "fan_in", "eigenvalue", "no_positions", "noise")
    seeds: Seeds = 2
    out: Out = Path("results/step_scale")


@dataclass(frozen=True, kw_only=True)
class DecayOptions(StudyOptions):
    """Batch sizes, optimizers."""

    batch_sizes: Annotated[tuple[Literal[1, 4, 16, 64, 256], ...], _help("Which batch sizes.")] = (
        1,
        4,
        16,
        64,
        256,
    )
    optimizers: Annotated[tuple[OptimizerName, ...], _help("Which optimizers.")] = ("sgd", "adam")
    out: Out = Path("results/decay")


@dataclass(frozen=True, kw_only=True)
class StatisticsEveryOptions(StudyOptions):
    """Networks."""

    tasks: Tasks = ("photo", "mlp")
    out: Out = Path("results/statistics_every")


@dataclass(frozen=True, kw_only=True)
class StepCostOptions(Options):
    """How long to measure."""

    repeats: Annotated[int, _help("How often each step is timed; the median counts.")] = 15
