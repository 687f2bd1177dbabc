"""MNIST: from a folder, or downloaded once and checked; and an autoencoder's task on it."""

from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from experiments.workloads.base import Samples, Workload
from experiments.workloads.classification import Classification
from experiments.workloads.reading import read_npz
from experiments.workloads.sources import checked_folder, fetch, named_folder

if TYPE_CHECKING:
    from jax import Array

ARCHIVE = "mnist.npz"
CONTENT = f"{ARCHIVE} (x_train, y_train, x_test, y_test)"
"""Of a data folder."""
SOURCE = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/"
DIGEST = "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1"  # SHA-256
SHAPES = {
    "x_train": (60000, 28, 28),
    "y_train": (60000,),
    "x_test": (10000, 28, 28),
    "y_test": (10000,),
}


class Mnist(Classification):
    """60000 + 10000 gray digits of 28x28, scaled to [0, 1] and otherwise raw (not centered)."""

    name = "mnist"
    title = "MNIST"

    @classmethod
    def load(cls, data_dir: Path | None = None) -> Self:
        """Read the images.

        Args:
            data_dir: folder with ``mnist.npz``. None: the folder that JAXNORM_DATA names, or,
                without it, the user's cache folder, filled by a download.

        Raises:
            DataError: for a folder without the data, a failed download, a damaged file.
        """
        parts = _arrays(data_dir)
        return cls(
            *(
                Samples(_pixels(parts[f"x_{part}"]), parts[f"y_{part}"].astype(np.int32))
                for part in ("train", "test")
            )
        )


class Autoencoder(Workload):
    """MNIST's images from themselves: the classical deep autoencoder's task."""

    name = "autoencoder"
    title = "MNIST autoencoder"
    loss_name = "binary cross-entropy of a pixel"
    test_name = "test squared error of a pixel"
    outputs = 784

    def __init__(self, train: np.ndarray, test: np.ndarray) -> None:
        """Keep images [N, 784] in [0, 1]."""
        self.train, self.test = Samples(train, train), Samples(test, test)

    @classmethod
    def load(cls, data_dir: Path | None = None) -> Self:
        """Read the images, see `Mnist.load`."""
        parts = _arrays(data_dir)
        return cls(_pixels(parts["x_train"]), _pixels(parts["x_test"]))

    def loss(self, outputs: "Array", targets: "Array") -> "Array":
        """Mean binary cross-entropy of logits and gray values in [0, 1]."""
        import optax

        return optax.sigmoid_binary_cross_entropy(outputs, targets).mean()

    def score(self, outputs: "Array", targets: "Array") -> "Array":
        """Squared error of each image, over its pixels."""
        import jax

        return ((jax.nn.sigmoid(outputs) - targets) ** 2).mean(axis=-1)


def _arrays(data_dir: Path | None) -> dict[str, np.ndarray]:
    folder = named_folder(data_dir)
    if folder is None:
        registry = {ARCHIVE: f"sha256:{DIGEST}"}
        return read_npz(fetch("mnist", SOURCE, registry, CONTENT)[ARCHIVE], SHAPES)
    return read_npz(checked_folder(folder, CONTENT) / ARCHIVE, SHAPES)


def _pixels(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float32) / np.float32(255)
