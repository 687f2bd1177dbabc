"""The options of `sweep` and `report`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal, get_args

import tyro

from experiments.options import DATA_DIR, Options, StudyOptions, left_open

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
        tuple[Path, ...] | None, left_open("PATH [PATH ...]", "those in the repository")
    ] = None
    pack: bool = False
    out: Path = Path("results/report")
