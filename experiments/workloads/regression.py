"""Small regressions from scikit-learn, inputs and target standardized; no network needed."""

from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from experiments.workloads.base import Samples, Workload, split

if TYPE_CHECKING:
    from jax import Array


class Regression(Workload):
    """A number from some others; all at mean 0 and variance 1 over the training samples.

    A fixed fifth of the samples is the test part.
    """

    loss_name = "mean squared error"
    test_name = "test mean squared error"
    standard = True
    outputs = 1

    def __init__(self, inputs: np.ndarray, targets: np.ndarray) -> None:
        """Take inputs [N, I] and targets [N], part and standardize them."""
        train, test = split(Samples(inputs, targets[:, None]), test_share=0.2)
        pairs = [(part.inputs, part.targets) for part in (train, test)]
        means, stds = ([of(array, axis=0) for array in pairs[0]] for of in (np.mean, np.std))
        self.train, self.test = (
            Samples(
                *(
                    ((array - mean) / std).astype(np.float32)
                    for array, mean, std in zip(pair, means, stds, strict=True)
                )
            )
            for pair in pairs
        )

    def loss(self, outputs: "Array", targets: "Array") -> "Array":
        """Mean squared error."""
        return ((outputs - targets) ** 2).mean()

    def score(self, outputs: "Array", targets: "Array") -> "Array":
        """Squared error of each sample."""
        return ((outputs - targets) ** 2).mean(axis=-1)


class Friedman(Regression):
    """4000 samples of Friedman's second function: four inputs, the impedance of a circuit."""

    name = "friedman"
    title = "Friedman 2"

    @classmethod
    def load(cls, data_dir: Path | None = None) -> Self:
        """Make the samples; `data_dir` is not used."""
        from sklearn.datasets import make_friedman2

        return cls(*make_friedman2(4000, noise=20.0, random_state=0))


class Diabetes(Regression):
    """442 patients: ten measurements, and the progress of the disease after a year."""

    name = "diabetes"
    title = "diabetes"

    @classmethod
    def load(cls, data_dir: Path | None = None) -> Self:
        """Read the table from the installed scikit-learn; `data_dir` is not used."""
        from sklearn.datasets import load_diabetes

        return cls(*map(np.asarray, load_diabetes(return_X_y=True)))
