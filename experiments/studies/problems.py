"""What the study of rates trains: problems, each with its grid of rates, and methods."""

from typing import NamedTuple

from experiments.methods import METHODS, Method
from experiments.studies.grid import index_of
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
        family: for the colors of the plot.
    """

    task: str
    optimizer: str
    batch_size: int
    steps: int
    lowest: float
    highest: float
    family: str

    @property
    def rates(self) -> range:
        """Half a decade apart, the same for every method; indices of the log grid."""
        return range(index_of(self.lowest), index_of(self.highest) + 1, 2)


_MLP, _TABLE, _IMAGE, _TEXT = "MLP, images", "MLP, table", "convnet", "transformer"

PROBLEMS = {
    "photo_sgd": Problem("small_photo", "sgd", 256, 300, 3e-3, 3, _MLP),
    "photo_adam": Problem("small_photo", "adam", 256, 300, 3e-4, 0.1, _MLP),
    "pixels_sgd_32": Problem("pixels", "sgd", 32, 400, 1e-3, 0.3, _MLP),
    "pixels_sgd_128": Problem("pixels", "sgd", 128, 300, 3e-3, 0.3, _MLP),
    "pixels_sgd_1024": Problem("pixels", "sgd", 1024, 100, 3e-3, 1, _MLP),
    "pixels_adam": Problem("pixels", "adam", 128, 300, 3e-4, 0.03, _MLP),
    "pixels_muon": Problem("pixels", "muon", 128, 250, 1e-3, 0.1, _MLP),
    "standardized_sgd": Problem("standardized", "sgd", 128, 300, 3e-3, 0.3, _MLP),
    "digits_adam": Problem("digits", "adam", 64, 300, 3e-4, 0.1, _MLP),
    "friedman_sgd": Problem("friedman", "sgd", 64, 500, 1e-3, 0.3, _TABLE),
    "friedman_adam": Problem("friedman", "adam", 64, 500, 3e-4, 0.1, _TABLE),
    "diabetes_sgd": Problem("diabetes", "sgd", 32, 400, 1e-3, 0.3, _TABLE),
    "tanh_sgd": Problem("tanh", "sgd", 64, 500, 1e-3, 0.3, _TABLE),
    "deep_sgd": Problem("deep", "sgd", 64, 400, 1e-4, 0.3, _TABLE),
    "convnet_sgd": Problem("convnet", "sgd", 64, 200, 1e-3, 0.3, _IMAGE),
    "convnet_adam": Problem("convnet", "adam", 64, 200, 3e-4, 0.03, _IMAGE),
    "cifar_sgd": Problem("cifar", "sgd", 64, 300, 1e-3, 0.3, _IMAGE),
    "cifar_adam": Problem("cifar", "adam", 64, 200, 3e-4, 0.03, _IMAGE),
    "text_adamw": Problem("text", "adamw", 16, 200, 3e-4, 0.03, _TEXT),
    "bare_text_adamw": Problem("bare_text", "adamw", 16, 200, 3e-4, 0.03, _TEXT),
}
"""By their names on the command line."""

OPTIMIZERS = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW", "muon": "Muon"}


class Entry(NamedTuple):
    """A method of the study.

    Attributes:
        title: as in tables and plots.
        method: its network.
        relative: see `Knobs`; None: the method as it is.
    """

    title: str
    method: Method
    relative: float | None = None


_OURS = METHODS["neuronwise"]

ENTRIES = {
    **{name: Entry(METHODS[name].title, METHODS[name]) for name in ("plain", "batchnorm", "bnp")},
    "neuronwise": Entry("neuron-wise", _OURS, 1.0),
    "between": Entry("neuron-wise, power 1/2", _OURS, 0.5),
    "standardized": Entry('neuron-wise, "standardized"', _OURS, 0.0),
}
"""By their names on the command line: the last three are one program, with sigma over its root mean
square to the power 1 (``Rule(step_size="plain")``, the default), 1/2 and 0 (``"standardized"``)."""


def heading(name: str) -> str:
    """What a problem is called in tables."""
    problem = PROBLEMS[name]
    optimizer = OPTIMIZERS[problem.optimizer]
    return f"{TASKS[problem.task].title}; {optimizer}, batch {problem.batch_size}"
