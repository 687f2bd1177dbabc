"""What the comparison needs to know about a task."""

import abc
import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from experiments.errors import ConfigError

if TYPE_CHECKING:  # a name only: the command line's --help does not wait for JAX
    from jax import Array


@dataclass(frozen=True)
class Defaults:
    """The size of a workload's comparison, where the command line does not say otherwise.

    Attributes:
        steps: optimizer steps of a run.
        batch_size: samples in a step.
        width: neurons in a hidden layer.
        depth: number of hidden layers.
        rates: learning rates, evenly spaced on a log scale, the same for every method.
        target_loss: training loss of the "steps to target" column, a constant: the final loss of
            the plain network at its best rate in one recorded run of the defaults, rounded up.
    """

    steps: int
    batch_size: int
    width: int
    depth: int
    rates: tuple[float, ...]
    target_loss: float


@dataclass(frozen=True)
class Samples:
    """Inputs [N, I] (float32; int32 for characters) and what belongs to them, [N, ...]."""

    inputs: np.ndarray
    targets: np.ndarray

    def __post_init__(self) -> None:
        """Hold both to the same number of samples."""
        if len(self.inputs) != len(self.targets):
            raise ValueError(f"got {len(self.inputs)} inputs for {len(self.targets)} targets")

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.inputs)


class Workload(abc.ABC):
    """A task: data, loss and test figure.

    Attributes:
        name: as on the command line.
        title: for the headings of tables and plots.
        loss_name: what the training loss is.
        test_name: what the test figure is, with its unit.
        defaults: size of the comparison, if it takes part in it.
        standard: whether each input has mean 0 and variance 1 over the training samples.
        outputs: width of the network's last layer.
        train: samples that are learned from.
        test: samples that are only looked at, after the last step.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    loss_name: ClassVar[str]
    test_name: ClassVar[str]
    defaults: ClassVar[Defaults]
    standard: ClassVar[bool] = False
    outputs: int
    train: Samples
    test: Samples

    @classmethod
    @abc.abstractmethod
    def load(cls, data_dir: Path | None = None) -> Self:
        """Read the data.

        Args:
            data_dir: the folder that holds it, for a workload that reads files.

        Raises:
            DataError: for data that is missing or damaged; the message names the file.
        """

    @abc.abstractmethod
    def loss(self, outputs: "Array", targets: "Array") -> "Array":
        """Mean loss of a minibatch: outputs [B, O], targets [B, ...]; a scalar."""

    @abc.abstractmethod
    def score(self, outputs: "Array", targets: "Array") -> "Array":
        """What each test sample contributes [N], of which `test_figure` takes the mean."""

    def test_figure(self, mean_score: float) -> float:
        """The figure that is reported, from the mean score of the test samples."""
        return mean_score

    def train_figure(self, loss: float) -> tuple[str, float] | None:
        """A training loss in the unit of the test figure, named; None where there is none."""
        del loss
        return None

    def standardized(self) -> Self:
        """The same task, its inputs standardized over the training samples."""
        same = copy.copy(self)
        same.train, same.test = standardized(self.train, self.train, self.test)
        return same

    def picture(self, predict: Callable[[np.ndarray], np.ndarray]) -> np.ndarray | None:
        """What a network has learned as an RGB picture [H, W, 3]; None where there is none.

        Args:
            predict: maps inputs [N, I] to the network's outputs [N, O].
        """
        del predict
        return None

    def original(self) -> np.ndarray | None:
        """The picture [H, W, 3] that `picture` should be like; None where there is none."""
        return None

    def batches(self, seed: int, steps: int, batch_size: int) -> np.ndarray:
        """The order of the data: indices into `train`, [steps, batch_size] (int32).

        It depends on the seed alone, so every method and rate sees the same minibatches. Each
        epoch is a fresh permutation; what does not fill its last minibatch is dropped.
        """
        if batch_size > len(self.train):
            raise ConfigError(
                f"--batch-size: got {batch_size}, expected at most the {len(self.train)} training "
                f"samples of {self.name}"
            )
        generator = np.random.default_rng(seed)
        per_epoch = len(self.train) // batch_size
        epochs = [
            generator.permutation(len(self.train))[: per_epoch * batch_size]
            for _ in range(-(-steps // per_epoch))
        ]
        order = np.concatenate(epochs).reshape(-1, batch_size)[:steps]
        return order.astype(np.int32)


def standardized(by: Samples, *parts: Samples) -> list[Samples]:
    """Samples with each input at mean 0 and variance 1, as it is over those of `by`.

    Those whose deviation is below about 1e-3 stay smaller: one sample in thousands makes it.
    """
    mean, std = (of(by.inputs, axis=0, dtype=np.float64) for of in (np.mean, np.std))
    return [
        Samples(((part.inputs - mean) / (std + 1e-3)).astype(np.float32), part.targets)
        for part in parts
    ]


def split(samples: Samples, test_share: float, seed: int = 0) -> tuple[Samples, Samples]:
    """Part samples at random, always in the same way, into (train, test).

    Args:
        samples: all there is.
        test_share: share of the samples, in (0, 1), that goes to the test part.
        seed: of the split; not the seed of a run.
    """
    order = np.random.default_rng(seed).permutation(len(samples))
    cut = round(test_share * len(samples))
    test, train = np.sort(order[:cut]), np.sort(order[cut:])
    return (
        Samples(samples.inputs[train], samples.targets[train]),
        Samples(samples.inputs[test], samples.targets[test]),
    )
