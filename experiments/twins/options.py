"""The options of `python -m experiments twins`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from experiments.options import DATA_DIR, Options


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
