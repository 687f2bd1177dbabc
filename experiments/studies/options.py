"""The options of the studies."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal, get_args

from experiments.options import DATA_DIR, OptimizerName, StudyOptions, left_open

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
    "bfloat16",
]
EntryName = Literal["plain", "batchnorm", "bnp", "neuronwise", "between", "standardized"]
SensitiveName = Literal["friedman_sgd", "friedman_adam", "pixels_sgd"]
PartedName = Literal["text_adamw", "bare_text_adamw", "photo_adam", "convnet_sgd", "cifar_sgd"]
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
            statistics of a quarter or a sixteenth of the rows; bfloat16: default, with
            statistics_dtype.
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
    steps: Annotated[int | None, left_open("INT", "twice those of rates")] = None
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
class PartsOptions(StudyOptions):
    """Which layers gain by the rule, and what decides about it?

    The rule in some kinds of layers only and plain steps in the others; forms of the rule; and
    transformers whose layers get inputs of another size or mean: final loss and steps, each at its
    best rate, over those of the same network without the rule. Writes parts.md, .csv and .png. Half
    an hour on one core. After an interruption the same command goes on.

    Attributes:
        problems: Which problems: transformers on Shakespeare, with and without LayerNorm, an MLP
            on a photograph, convnets on Fashion-MNIST and CIFAR-10.
        quick: A tenth of the steps, all layers and the first kind only: a minute or two.
        seeds: Number of seeds of each run; they are 0, 1, ...
        data_dir: Folder with fashion_mnist.npz (or the four official .gz files),
            cifar-10-batches-bin and tinyshakespeare.txt, as far as the problems need them.
    """

    job: ClassVar[str] = "experiments.studies.parts:Parts.main"

    problems: tuple[PartedName, ...] = get_args(PartedName)
    quick: bool = False
    seeds: int = 3
    data_dir: Annotated[Path | None, DATA_DIR] = None
    out: Path = Path("results/parts")
