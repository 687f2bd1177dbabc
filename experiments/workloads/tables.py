"""Small classifications of tables from scikit-learn, inputs standardized; no network needed."""

from pathlib import Path
from typing import Self

import numpy as np

from experiments.workloads.base import Samples, split
from experiments.workloads.classification import Classification


class TableClassification(Classification):
    """A class from some numbers, each at mean 0 and variance 1 over the training samples.

    A fixed fifth of the samples is the test part.
    """

    standard = True

    def __init__(self, inputs: np.ndarray, labels: np.ndarray) -> None:
        """Take inputs [N, I] and labels [N], part and standardize them."""
        train, test = split(Samples(inputs, labels.astype(np.int32)), test_share=0.2)
        mean, std = (of(train.inputs, axis=0) for of in (np.mean, np.std))
        super().__init__(
            *(
                Samples(((part.inputs - mean) / std).astype(np.float32), part.targets)
                for part in (train, test)
            )
        )
        self.outputs = int(labels.max()) + 1


class BreastCancer(TableClassification):
    """569 tumors: thirty measurements of cell nuclei, malign or benign."""

    name = "breast_cancer"
    title = "breast cancer"

    @classmethod
    def load(cls, data_dir: Path | None = None) -> Self:
        """Read the table from the installed scikit-learn; `data_dir` is not used."""
        from sklearn.datasets import load_breast_cancer

        return cls(*map(np.asarray, load_breast_cancer(return_X_y=True)))


class Wine(TableClassification):
    """178 wines of three growers: thirteen measurements."""

    name = "wine"
    title = "wine"

    @classmethod
    def load(cls, data_dir: Path | None = None) -> Self:
        """Read the table from the installed scikit-learn; `data_dir` is not used."""
        from sklearn.datasets import load_wine

        return cls(*map(np.asarray, load_wine(return_X_y=True)))
