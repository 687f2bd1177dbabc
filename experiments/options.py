"""What the options of all jobs share, and those of `compare`; the others lie with their jobs."""

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin, get_type_hints

import tyro

from experiments.errors import ConfigError
from experiments.workloads import WORKLOADS

WorkloadName = Literal["photo", "digits", "fashion_mnist"]
MethodName = Literal["plain", "batchnorm", "layernorm", "bnp", "neuronwise", "unwrapped"]
OptimizerName = Literal["sgd", "adam"]


ADAM_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
"""Learning rates for Adam, whose steps do not scale with the gradient, on any workload."""


def left_open(metavar: str, default: str) -> Any:
    """For an option that is None by default: what stands for the value, and what None comes to."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


def some_of(names: Any, default: str) -> Any:
    """For an option that takes some of these names and is None by default."""
    return left_open(f"{{{','.join(get_args(names))}}} ...", default)


def _of_workload(metavar: str, field: str) -> Any:
    """For an option whose default is the workload's own."""
    shown = []
    for name, workload in WORKLOADS.items():
        value = getattr(workload.defaults, field)
        numbers = value if isinstance(value, tuple) else (value,)
        shown.append(" ".join([name, *(f"{number:g}" for number in numbers)]))
    return left_open(metavar, "; ".join(shown))


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


DATA_DIR = left_open(
    "PATH",
    "the folder that the variable JAXNORM_DATA names; without it, a download into the user's "
    "cache folder",
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What all options have in common: whole numbers count something, names are known ones.

    The docstrings of the classes below are the help of the command line.
    """

    job: ClassVar[str]
    """The function that takes the options; imported when it runs, so --help waits for no JAX."""

    def __post_init__(self) -> None:
        """Refuse what cannot work, with the reason."""
        for name, hint in get_type_hints(type(self)).items():
            value, flag = getattr(self, name), _flag(name)
            counts = isinstance(value, int) and not isinstance(value, bool)
            least = 0 if name.startswith("parallel_") else 1
            if counts and value < least:
                raise ConfigError(f"{flag}: got {value}, expected at least {least}")
            if isinstance(value, tuple) and (not value or len(set(value)) < len(value)):
                raise ConfigError(f"{flag}: got {value}, expected one or more, each once")
            if type(None) in get_args(hint):
                if value is None:
                    continue
                hint = get_args(hint)[0]
            if get_origin(hint) is tuple:
                hint = get_args(hint)[0]
            for choice in value if isinstance(value, tuple) else (value,):
                if get_origin(hint) is Literal and choice not in get_args(hint):
                    known = ", ".join(map(str, get_args(hint)))
                    raise ConfigError(f"{flag}: got {choice!r}, expected one of {known}")


@dataclass(frozen=True, kw_only=True)
class CompareConfig(Options):
    """Train one ReLU network under several normalization methods and compare them.

    Plain, BatchNorm, LayerNorm, BNP and the neuron-wise rule, over the same grid of learning rates
    and the same seeds. Prints one table and writes to the output folder: the table, the plots (PNG
    and SVG), one line of JSON for every run. Without options: a photograph, no network connection,
    about a minute on two cores. After an interruption the same command goes on.

    Attributes:
        workload: What to learn. photo: coordinates -> colors of scikit-learn's sample photograph.
            digits: scikit-learn's 8x8 digits. fashion_mnist: from a folder (see --data-dir), or
            downloaded once.
        methods: Which methods, in this order. batchnorm and layernorm stand before each ReLU; bnp
            and neuronwise change the gradient only; unwrapped gives the optimizer the gradient
            that is right for SGD, whichever it is.
        optimizer: sgd, with momentum, or adam. bnp and neuronwise run it in the neurons'
            coordinates.
        rates: Learning rates, the same for every method;
            with adam by default 0.0001 0.0003 0.001 0.003 0.01 0.03.
        seeds: Number of seeds; they are 0, 1, ... A seed fixes initial weights and minibatches.
        steps: Optimizer steps of a run.
        batch_size: Samples in a step.
        width: Neurons in a hidden layer.
        depth: Number of hidden layers.
        momentum: Momentum of SGD: the share of the old step that is kept. The rate is constant.
        target_loss: Training loss for the column 'steps to loss': about where the plain network
            ends at its best rate.
        window: Steps in the running mean of the minibatch loss that is held against the target and
            drawn as the learning curve.
        tail: Share of the steps, at the end, whose mean minibatch loss is the final training loss.
        parallel_rates: Train at most so many rates at once, all seeds of each; 0: all rates. For
            when all runs of a method together need too much memory.
        timing: Afterwards time a step of each method alone, for 'seconds to loss': up to 20 s more.
        data_dir: Folder with the data of fashion_mnist (fashion_mnist.npz, or the four official .gz
            files). It is only read.
        out: Folder for the results. Runs of the same options that it holds are not trained again;
            a folder with runs of other options is refused.
    """

    job: ClassVar[str] = "experiments.compare:run"

    workload: WorkloadName = "photo"
    methods: tuple[MethodName, ...] = get_args(MethodName)[:-1]
    optimizer: OptimizerName = "sgd"
    rates: Annotated[tuple[float, ...] | None, _of_workload("FLOAT [FLOAT ...]", "rates")] = None
    seeds: int = 3
    steps: Annotated[int | None, _of_workload("INT", "steps")] = None
    batch_size: Annotated[int | None, _of_workload("INT", "batch_size")] = None
    width: Annotated[int | None, _of_workload("INT", "width")] = None
    depth: Annotated[int | None, _of_workload("INT", "depth")] = None
    momentum: float = 0.9
    target_loss: Annotated[float | None, _of_workload("FLOAT", "target_loss")] = None
    window: int = 20
    tail: float = 0.05
    parallel_rates: int = 0
    timing: bool = True
    data_dir: Annotated[Path | None, DATA_DIR] = None
    out: Annotated[
        Path | None, left_open("PATH", "results/<workload>, with adam results/<workload>_adam")
    ] = None

    def __post_init__(self) -> None:
        """Refuse what cannot work, with the reason."""
        super().__post_init__()
        rates, target = self.rates or (), self.target_loss
        for name, fine, expected in (
            ("momentum", 0 <= self.momentum < 1, "a number in [0, 1)"),
            ("tail", 0 < self.tail <= 1, "a number in (0, 1]"),
            ("target_loss", target is None or math.isfinite(target), "a finite number"),
            ("rates", all(math.isfinite(r) and r > 0 for r in rates), "positive numbers"),
        ):
            if not fine:
                raise ConfigError(f"{_flag(name)}: got {getattr(self, name)}, expected {expected}")

    def resolved(self) -> "Plan":
        """What is to be done: the workload's value for every option left open."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        adam = self.optimizer == "adam"
        if adam and self.rates is None:
            given["rates"] = ADAM_RATES
        for name, value in vars(WORKLOADS[self.workload].defaults).items():
            if given[name] is None:
                given[name] = value
        given["rates"] = tuple(sorted(given["rates"]))
        given["out"] = self.out or Path("results") / (self.workload + "_adam" * adam)
        return Plan(**given)


@dataclass(frozen=True, kw_only=True)
class Plan(CompareConfig):
    """A `CompareConfig` with nothing left open, made by `resolved`; the rates ascend."""

    rates: tuple[float, ...] = ()
    steps: int = 0
    batch_size: int = 0
    width: int = 0
    depth: int = 0
    target_loss: float = 0.0
    out: Path = Path()

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


@dataclass(frozen=True, kw_only=True)
class StudyOptions(Options):
    """What every study asks.

    Attributes:
        seeds: Number of seeds of each run; they are 0, 1, ...
        data_dir: Folder with Fashion-MNIST, as for compare.
        out: Folder for the results. What was trained for it before is not trained again.
    """

    seeds: int = 1
    data_dir: Annotated[Path | None, DATA_DIR] = None
    out: Path = Path("results")
