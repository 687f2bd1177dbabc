"""The options of every job, and what is wrong with those that cannot work."""

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
ProblemName = Literal[
    "photo_sgd",
    "photo_adam",
    "pixels_sgd_32",
    "pixels_sgd_128",
    "pixels_sgd_1024",
    "pixels_adam",
    "pixels_muon",
    "standardized_sgd",
    "digits_adam",
    "friedman_sgd",
    "friedman_adam",
    "diabetes_sgd",
    "tanh_sgd",
    "deep_sgd",
    "convnet_sgd",
    "convnet_adam",
    "cifar_sgd",
    "cifar_adam",
    "text_adamw",
    "bare_text_adamw",
]
ScheduleName = Literal[
    "every_step",
    "unsmoothed",
    "at_most_4",
    "at_most_8",
    "default",
    "at_most_32",
    "at_most_64",
    "no_dense_start",
    "smoothing_8",
    "rows_4",
    "rows_16",
]
EntryName = Literal["plain", "batchnorm", "bnp", "neuronwise", "between", "standardized"]

EvidenceName = Literal[
    "mnist_sgd",
    "mnist_adam",
    "cancer_sgd",
    "cancer_adam",
    "wine_sgd",
    "wine_adam",
    "autoencoder_sgd",
    "autoencoder_adam",
    "deep30_sgd",
    "deep30_adam",
    "mnist_sgd_1",
    "mnist_sgd_8",
    "mnist_sgd_1024",
    "mnist_adam_1",
    "mnist_adam_8",
    "mnist_adam_1024",
    "burgers_sgd",
    "burgers_adam",
    "photo_sgd",
    "photo_adam",
    "pixels_sgd_128",
    "pixels_adam",
    "digits_adam",
    "friedman_sgd",
    "friedman_adam",
    "diabetes_sgd",
    "convnet_sgd",
    "convnet_adam",
    "cifar_sgd",
    "cifar_adam",
    "text_adamw",
    "bare_text_adamw",
    "resnet_sgd",
    "resnet_adam",
]
CandidateName = Literal[
    "plain",
    "batchnorm",
    "layernorm",
    "groupnorm",
    "batchnorm_after",
    "batchrenorm",
    "weightnorm",
    "onlinenorm",
    "mixturenorm",
    "inputs",
    "centralize",
    "muon",
    "bnp",
    "bnp_published",
    "metric",
    "literal",
    "quasi_diagonal",
    "centered",
    "layer_scale",
    "every_step",
    "averaged",
    "neuronwise",
    "batchnorm_neuronwise",
]

SensitiveName = Literal["friedman_sgd", "friedman_adam", "pixels_sgd"]
VariedName = Literal[
    "width",
    "depth",
    "scale",
    "unit",
    "mean",
    "batch_size",
    "schedule",
    "damping",
    "shrinkage",
    "decay",
    "statistics_every",
]

SettingName = Literal["jax", "jax-two-programs", "torch", "torch-compiled", "torch-cudagraphs"]
NetworkName = Literal["mlp-256", "mlp-1024", "mlp-4096", "transformer", "resnet"]
TimedName = Literal[
    "plain",
    "batchnorm",
    "layernorm",
    "bnp",
    "neuronwise",
    "full",
    "layer",
    "stateless",
    "muon",
    "soap",
]
KindName = Literal["mlp", "transformer", "resnet"]
ShardingName = Literal["one", "data", "fsdp"]
CompiledName = Literal["plain", "batchnorm", "neuronwise", "full", "layer"]

ADAM_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
"""Learning rates for Adam, whose steps do not scale with the gradient, on any workload."""


def _open(metavar: str, default: str) -> Any:
    """For an option that is None by default: what stands for the value, and what None comes to."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


def some_of(names: Any, default: str) -> Any:
    """For an option that takes some of these names and is None by default."""
    return _open(f"{{{','.join(get_args(names))}}} ...", default)


def _of_workload(metavar: str, field: str) -> Any:
    """For an option whose default is the workload's own."""
    shown = []
    for name, workload in WORKLOADS.items():
        value = getattr(workload.defaults, field)
        numbers = value if isinstance(value, tuple) else (value,)
        shown.append(" ".join([name, *(f"{number:g}" for number in numbers)]))
    return _open(metavar, "; ".join(shown))


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


DATA_DIR = _open(
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
        Path | None, _open("PATH", "results/<workload>, with adam results/<workload>_adam")
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


@dataclass(frozen=True, kw_only=True)
class RatesOptions(StudyOptions):
    """Does the rate of the plain optimizer stay right in the neurons' coordinates?

    Every method at the same rates, half a decade apart, on each problem (a network, data, a batch
    size and an optimizer): its loss at the plain optimizer's best rate and at its own, how wide the
    window of good rates is, and how soon it is where plain ends. Writes rates.md, .csv and .png,
    and rates_few.png. Three quarters of an hour on one core. After an interruption the same command
    goes on.

    Attributes:
        problems: Which problems. pixels, standardized and convnet are of Fashion-MNIST, with raw
            and with standardized pixels; photo, digits, friedman, diabetes, tanh and deep need no
            data; text is of Shakespeare, bare_text without LayerNorm.
        methods: Which methods, beside plain. neuronwise is the default rule, standardized that with
            step_size="standardized"; between divides sigma by the root of what neuronwise divides
            it by.
        schedule: What becomes of a rate in a run; cosine: it falls to 0.
        data_dir: Folder with fashion_mnist.npz (or the four official .gz files),
            cifar-10-batches-bin and tinyshakespeare.txt, as far as the problems need them.
    """

    job: ClassVar[str] = "experiments.studies.rates:Rates.main"

    problems: tuple[ProblemName, ...] = get_args(ProblemName)
    methods: tuple[EntryName, ...] = get_args(EntryName)
    schedule: Literal["constant", "cosine"] = "constant"
    seeds: int = 5
    data_dir: Annotated[Path | None, DATA_DIR] = None
    out: Path = Path("results/rates")


@dataclass(frozen=True, kw_only=True)
class DecayOptions(StudyOptions):
    """Find the right decay of the tracked statistics for each batch size, down to one sample.

    A Fashion-MNIST network with SGD and with Adam in the neurons' coordinates, with the statistics
    of every batch, and plain; each at its best rate. Writes decay.md, .csv and .png. About half an
    hour on one core. After an interruption the same command goes on.

    Attributes:
        batch_sizes: Which batch sizes.
        optimizers: Which optimizers.
    """

    job: ClassVar[str] = "experiments.studies.decay:Decay.main"

    batch_sizes: tuple[Literal[1, 4, 16, 64, 256], ...] = (1, 4, 16, 64, 256)
    optimizers: tuple[OptimizerName, ...] = ("sgd", "adam")
    out: Path = Path("results/decay")


@dataclass(frozen=True, kw_only=True)
class StatisticsEveryOptions(StudyOptions):
    """Does taking statistics in some of the steps only keep the final loss and the safe rates?

    Schedules of `statistics_every` and thinned rows beside statistics in every step, each at its
    own best rate of the same grid, a quarter of a decade apart. Writes statistics_every.md, .csv
    and .png, the quality against the cost. Some hours on one core, minutes on a GPU. After an
    interruption the same command goes on.

    Attributes:
        problems: Which problems, see `rates`. Those of the photograph need no data.
        schedules: Which schedules, beside every_step, where nothing is smoothed. default and
            at_most_*: the interval is a tenth of the steps made, at most 16 or as many as the name
            says, smoothing 0.5; unsmoothed: default, without; smoothing_8: default, with 0.8;
            no_dense_start: every 16th step from the start on; rows_*: default, with the neurons'
            statistics of a quarter or a sixteenth of the rows.
        steps: Optimizer steps of a run.
        parallel_schedules: Train at most so many schedules at once, all rates and seeds of each; 0:
            all of the same rows and smoothing. For when they need too much memory together.
        seeds: Number of seeds of each run; they are 0, 1, ...
        data_dir: Folder with fashion_mnist.npz (or the four official .gz files) and
            tinyshakespeare.txt, as far as the problems need them.
    """

    job: ClassVar[str] = "experiments.studies.statistics_every:StatisticsEvery.main"

    problems: tuple[ProblemName, ...] = (
        "photo_sgd",
        "photo_adam",
        "pixels_sgd_128",
        "pixels_adam",
        "convnet_sgd",
        "text_adamw",
    )
    schedules: tuple[ScheduleName, ...] = get_args(ScheduleName)
    steps: Annotated[int | None, _open("INT", "twice those of rates")] = None
    parallel_schedules: int = 0
    seeds: int = 5
    data_dir: Annotated[Path | None, DATA_DIR] = None
    out: Path = Path("results/statistics_every")


@dataclass(frozen=True, kw_only=True)
class SensitivityOptions(StudyOptions):
    """How do the methods take what one would rather not tune?

    The final loss of plain, BatchNorm, BNP and the neuron-wise rule, each at its best rate, while
    one thing varies: sizes of the network, initial weights, unit and mean of the inputs, batch
    size, warm-up and cosine; and of the rule its knobs. Writes sensitivity.md, .csv and .png. Three
    quarters of an hour on one core. After an interruption the same command goes on.

    Attributes:
        problems: Which problems; those of friedman need no data.
        varied: What varies.
        seeds: Number of seeds of each run; they are 0, 1, ...
    """

    job: ClassVar[str] = "experiments.studies.sensitivity:Sensitivity.main"

    problems: tuple[SensitiveName, ...] = get_args(SensitiveName)
    varied: tuple[VariedName, ...] = get_args(VariedName)
    seeds: int = 3
    out: Path = Path("results/sensitivity")


@dataclass(frozen=True, kw_only=True)
class SweepOptions(StudyOptions):
    """Run the evidence: every method on every problem, by experiments/PROTOCOL.md.

    Screens all rates with two seeds, then trains ten others at each method's best one; holds them
    against the target that the best of plain, BatchNorm and LayerNorm sets. Writes sweep.md, .csv
    and .png. Some hours on one core, in parts: after an interruption the same command goes on, and
    names of problems and methods make it shorter.

    Attributes:
        problems: Which problems; the first eighteen are of data on which nothing was chosen.
        methods: Which methods, beside plain.
        seconds: Train nothing: time a step of each method alone, on a machine that does nothing
            else; writes seconds.json.
        seeds: Not asked: the protocol has fixed them.
        data_dir: Folder with mnist.npz, fashion_mnist.npz (or the four official .gz files),
            cifar-10-batches-bin and tinyshakespeare.txt, as far as the problems need them.
    """

    job: ClassVar[str] = "experiments.evidence.job:run"

    problems: tuple[EvidenceName, ...] = get_args(EvidenceName)
    methods: tuple[CandidateName, ...] = get_args(CandidateName)
    seconds: bool = False
    seeds: Annotated[int, tyro.conf.Suppress] = 10
    data_dir: Annotated[Path | None, DATA_DIR] = None
    out: Path = Path("results/sweep")


@dataclass(frozen=True, kw_only=True)
class ReportOptions(Options):
    """Render the evidence: one page of HTML, which needs nothing else, and Markdown with pictures.

    From the results of a sweep, or from those in the repository. What has not been run is said.

    Attributes:
        results: sweep.jsonl of sweeps, or sweep.jsonl.gz, or folders of such files; they are
            joined. Of a cell that was run twice the run that finished last counts.
        pack: Also write the joined results as sweep.jsonl.gz (and seconds.json).
        out: Folder for the report.
    """

    job: ClassVar[str] = "experiments.evidence.report:run"

    results: Annotated[
        tuple[Path, ...] | None, _open("PATH [PATH ...]", "those in the repository")
    ] = None
    pack: bool = False
    out: Path = Path("results/report")


@dataclass(frozen=True, kw_only=True)
class BenchOptions(Options):
    """What does a training step cost beside the plain one, on this machine?

    Whole steps (forward, backward, Adam) on data that is on the device, all methods of a network
    taking turns: the median over rounds of the ratio to the plain step of the same round. Beside
    it what does not depend on the clock: memory, state, operations, bytes; and the seconds of
    compiling. Writes table.md, bench.json, cost.png and .svg. Three quarters of an hour on one
    core; use a machine that does nothing else. Ctrl-C writes what there is.

    Attributes:
        frameworks: Which frameworks, and how the step runs. In JAX as one program, or as two, with
            statistics and without, between which the loop chooses. In PyTorch eager, compiled with
            torch.compile, or on CUDA as one CUDA graph. What cannot be here is left out, with the
            reason.
        networks: Which networks.
        methods: Which methods, beside plain. neuronwise is the default rule, full that with
            statistics in every step, layer that with scale="layer"; stateless adapts the gradient
            itself. muon and soap where they are installed.
        rounds: How often every step is timed.
        quick: A small part of it, in under two minutes on two cores.
        sweep: Also vary the batch and the width of the MLP, for the plot.
        threads: Of the CPU.
        device: cpu, cuda, cuda:1, tpu, ...
        dtype: In which the networks compute; parameters, and what Adam has, are float32.
        out: Folder for the results.
    """

    job: ClassVar[str] = "experiments.bench.job:run"

    frameworks: Annotated[
        tuple[SettingName, ...] | None, some_of(SettingName, "all; quick: jax torch")
    ] = None
    networks: Annotated[
        tuple[NetworkName, ...] | None, some_of(NetworkName, "all; quick: mlp-256")
    ] = None
    methods: Annotated[
        tuple[TimedName, ...] | None, some_of(TimedName, "all; quick: the most important ones")
    ] = None
    rounds: Annotated[int | None, _open("INT", "15; quick: 5")] = None
    quick: bool = False
    sweep: bool = True
    threads: int = 1
    device: Annotated[str | None, _open("NAME", "the one that JAX takes by itself")] = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    out: Path = Path("results/bench")

    def resolved(self) -> "BenchPlan":
        """What is to be done, with nothing left open; plain is always timed."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, (everything, few) in {
            "frameworks": (get_args(SettingName), ("jax", "torch")),
            "networks": (get_args(NetworkName), ("mlp-256",)),
            "methods": (get_args(TimedName), ("plain", "batchnorm", "neuronwise", "full")),
            "rounds": (15, 5),
        }.items():
            if given[name] is None:
                given[name] = few if self.quick else everything
        given["methods"] = ("plain", *(name for name in given["methods"] if name != "plain"))
        return BenchPlan(**given)


@dataclass(frozen=True, kw_only=True)
class BenchPlan(BenchOptions):
    """A `BenchOptions` with nothing left open, made by `resolved`."""

    frameworks: tuple[SettingName, ...] = ()
    networks: tuple[NetworkName, ...] = ()
    methods: tuple[TimedName, ...] = ()
    rounds: int = 0


@dataclass(frozen=True, kw_only=True)
class TpuOptions(Options):
    """What does a training step cost on TPUs, as far as their compiler knows?

    Compiles whole steps (forward, backward, Adam) for TPUs, none of which need be there:
    operations, bytes, memory, what the devices send each other. It needs libtpu (pip install
    'neuronwise-norm[tpu]'; Linux on x86-64). On a machine with TPUs it compiles for these, and
    times the steps too. Writes table.md and tpu.json after each. Half an hour on two cores, with
    --scale large much more.

    Attributes:
        targets: For which TPUs: a generation (v2 v3 v4 v5e v5p v6e tpu7x), with its chips if not
            the usual few: v5e:4x4. here: the devices of this machine, whichever they are.
        sharding: one: one chip. data: the batch over all chips. fsdp: parameters, optimizer
            state and statistics too.
        networks: Which networks, those of bench.
        scale: bench: about the sizes of bench. large: sizes that fill a chip; the MLP is 4096 wide
            and has 4096 samples in a step.
        methods: Which methods, beside plain, as in bench.
        quick: The MLP, plain and two methods, for one target.
        export: Also write every step to this folder, with jax.export for TPU, CUDA and CPU; read it
            again, run it on the CPU and compare.
        dtype: In which the networks compute; parameters, and what Adam has, are float32.
        out: Folder for the results.
    """

    job: ClassVar[str] = "experiments.tpu.job:run"

    targets: Annotated[
        tuple[str, ...] | None, _open("NAME [NAME ...]", "v5e:2x2; with TPUs: here")
    ] = None
    sharding: Annotated[
        tuple[ShardingName, ...] | None, some_of(ShardingName, "all; quick: data")
    ] = None
    networks: Annotated[tuple[KindName, ...] | None, some_of(KindName, "all; quick: mlp")] = None
    scale: Literal["bench", "large"] = "bench"
    methods: Annotated[
        tuple[CompiledName, ...] | None, some_of(CompiledName, "all; quick: batchnorm neuronwise")
    ] = None
    quick: bool = False
    export: Annotated[Path | None, _open("PATH", "nothing is exported")] = None
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    out: Path = Path("results/tpu")

    def resolved(self) -> "TpuPlan":
        """What is to be done, with nothing left open but the targets; plain is always compiled."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, (everything, few) in {
            "sharding": (get_args(ShardingName), ("data",)),
            "networks": (get_args(KindName), ("mlp",)),
            "methods": (get_args(CompiledName), ("batchnorm", "neuronwise")),
        }.items():
            if given[name] is None:
                given[name] = few if self.quick else everything
        given["methods"] = ("plain", *(name for name in given["methods"] if name != "plain"))
        return TpuPlan(**given)


@dataclass(frozen=True, kw_only=True)
class TpuPlan(TpuOptions):
    """A `TpuOptions` with nothing left open but the targets, made by `resolved`."""

    sharding: tuple[ShardingName, ...] = ()
    networks: tuple[KindName, ...] = ()
    methods: tuple[CompiledName, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TheoryOptions(Options):
    """What can be proven about the rule, and what its coordinates make of a network's curvature.

    Checks every claim of experiments/theory/README.md as a number, then trains a small network
    and looks at the spectra of its Hessian and Gauss-Newton matrix at some steps. Writes claims.md,
    conditioning.png, spectra.md and spectra.png. Two minutes on two cores.

    Attributes:
        spectra: Also measure; otherwise only the claims.
        layers: Also look at each layer of every task of `sweep`, which needs all of its data; a
            quarter of an hour on one core. Writes layers.md and layers.json.
        workloads: Whose networks are looked at.
        steps: After how many steps.
        width: Neurons in a hidden layer.
        depth: Number of hidden layers.
        data_dir: Folder with the files of fashion_mnist.
        out: Folder for the results.
    """

    job: ClassVar[str] = "experiments.theory.job:run"

    spectra: bool = True
    layers: bool = False
    workloads: tuple[WorkloadName, ...] = ("photo", "digits")
    steps: tuple[int, ...] = (0, 30, 300)
    width: int = 32
    depth: int = 3
    data_dir: Annotated[Path | None, DATA_DIR] = None
    out: Path = Path("results/theory")


@dataclass(frozen=True, kw_only=True)
class TwinsOptions(Options):
    """Train the same networks in JAX and in PyTorch, from the same weights on the same minibatches.

    Writes twins.md and twins.png: the curves of both frameworks, and how far they are apart. Two
    minutes on one core.

    Attributes:
        tasks: Which networks: mlp and convnet learn Fashion-MNIST, text is a transformer and learns
            Shakespeare.
        methods: Which methods; the transformer takes no BatchNorm.
        optimizer: Which optimizer.
        rate: Its rate.
        steps: Of a run.
        batch_size: Samples in a minibatch.
        data_dir: Folder with fashion_mnist.npz and tinyshakespeare.txt, as far as they are needed.
        out: Folder for the results.
    """

    job: ClassVar[str] = "experiments.twins.job:run"

    tasks: tuple[Literal["mlp", "convnet", "text", "digits"], ...] = ("mlp", "convnet", "text")
    methods: tuple[Literal["plain", "batchnorm", "bnp", "neuronwise"], ...] = (
        "plain",
        "batchnorm",
        "neuronwise",
    )
    optimizer: Literal["adam", "sgd"] = "adam"
    rate: float = 1e-3
    steps: int = 300
    batch_size: int = 64
    data_dir: Annotated[Path | None, DATA_DIR] = None
    out: Path = Path("results/twins")
