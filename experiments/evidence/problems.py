"""What the methods learn: problems on known data and on fresh data, see experiments/PROTOCOL.md."""

from typing import NamedTuple

from experiments.studies.grid import index_of
from experiments.studies.problems import OPTIMIZERS
from experiments.studies.problems import PROBLEMS as KNOWN
from experiments.studies.tasks import TASKS


class Problem(NamedTuple):
    """A network, data, a batch size and an optimizer.

    Attributes:
        task: its name in `TASKS`.
        optimizer: its name for `make_optimizer`.
        batch_size: samples in a step.
        steps: of a run.
        lowest: the smallest rate of the grid, about.
        highest: the largest, about.
        fresh: whether nothing of this project was chosen on the data.
    """

    task: str
    optimizer: str
    batch_size: int
    steps: int
    lowest: float
    highest: float
    fresh: bool

    @property
    def rates(self) -> range:
        """Half a decade apart, the same for every method; indices of the log grid."""
        return range(index_of(self.lowest), index_of(self.highest) + 1, 2)

    @property
    def title(self) -> str:
        """As in tables and plots."""
        return f"{TASKS[self.task].title}; {OPTIMIZERS[self.optimizer]}, batch {self.batch_size}"


def _known(name: str) -> Problem:
    of = KNOWN[name]
    sizes = of.batch_size, of.steps, of.lowest, of.highest
    return Problem(of.task, of.optimizer, *sizes, fresh=False)


_SGD, _ADAM = (1e-3, 1.0), (3e-4, 0.1)

PROBLEMS: dict[str, Problem] = {
    "mnist_sgd": Problem("mnist", "sgd", 128, 400, *_SGD, fresh=True),
    "mnist_adam": Problem("mnist", "adam", 128, 400, *_ADAM, fresh=True),
    "cancer_sgd": Problem("breast_cancer", "sgd", 32, 300, *_SGD, fresh=True),
    "cancer_adam": Problem("breast_cancer", "adam", 32, 300, *_ADAM, fresh=True),
    "wine_sgd": Problem("wine", "sgd", 16, 200, *_SGD, fresh=True),
    "wine_adam": Problem("wine", "adam", 16, 200, *_ADAM, fresh=True),
    "autoencoder_sgd": Problem("autoencoder", "sgd", 128, 500, 1e-2, 10.0, fresh=True),
    "autoencoder_adam": Problem("autoencoder", "adam", 128, 500, *_ADAM, fresh=True),
    "deep30_sgd": Problem("deep30", "sgd", 128, 400, 1e-4, 0.3, fresh=True),
    "deep30_adam": Problem("deep30", "adam", 128, 400, 1e-4, 0.03, fresh=True),
    "mnist_sgd_1": Problem("mnist", "sgd", 1, 3000, 3e-5, 0.03, fresh=True),
    "mnist_sgd_8": Problem("mnist", "sgd", 8, 1500, 3e-4, 0.3, fresh=True),
    "mnist_sgd_1024": Problem("mnist", "sgd", 1024, 100, *_SGD, fresh=True),
    "mnist_adam_1": Problem("mnist", "adam", 1, 3000, 1e-5, 1e-2, fresh=True),
    "mnist_adam_8": Problem("mnist", "adam", 8, 1500, 3e-5, 3e-2, fresh=True),
    "mnist_adam_1024": Problem("mnist", "adam", 1024, 100, *_ADAM, fresh=True),
    "burgers_sgd": Problem("burgers", "sgd", 256, 500, 1e-4, 0.1, fresh=True),
    "burgers_adam": Problem("burgers", "adam", 256, 500, *_ADAM, fresh=True),
    **{
        name: _known(name)
        for name in (
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
        )
    },
    "resnet_sgd": Problem("resnet", "sgd", 64, 150, 1e-3, 0.3, fresh=False),
    "resnet_adam": Problem("resnet", "adam", 64, 150, 3e-4, 0.03, fresh=False),
}
"""By their names on the command line, the fresh ones first."""
