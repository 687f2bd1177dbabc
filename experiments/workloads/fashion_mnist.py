"""Fashion-MNIST: from a folder, or downloaded once from its authors and checked."""

from pathlib import Path
from typing import Self

import numpy as np

from experiments.errors import DataError
from experiments.workloads.base import Defaults, Samples
from experiments.workloads.classification import Classification
from experiments.workloads.reading import read_idx, read_npz
from experiments.workloads.sources import checked_folder, fetch, named_folder, way_out

ARCHIVE = "fashion_mnist.npz"
"""The one-file form: arrays x_train, y_train, x_test, y_test."""

# The authors' own repository, at a fixed commit (MIT license, Zalando SE).
SOURCE = (
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/"
    "b2617bb6d3ffa2e429640350f613e3291e10b141/data/fashion/"
)
OFFICIAL = {
    "x_train": "train-images-idx3-ubyte.gz",
    "y_train": "train-labels-idx1-ubyte.gz",
    "x_test": "t10k-images-idx3-ubyte.gz",
    "y_test": "t10k-labels-idx1-ubyte.gz",
}
"""The four official files, by the array they hold."""

CONTENT = f"{ARCHIVE} (x_train, y_train, x_test, y_test) or the four official .gz files"
"""Of a data folder."""

DIGESTS = {  # SHA-256
    "x_train": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "y_train": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "x_test": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "y_test": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
}
SHAPES = {
    "x_train": (60000, 28, 28),
    "y_train": (60000,),
    "x_test": (10000, 28, 28),
    "y_test": (10000,),
}


class FashionMnist(Classification):
    """60000 + 10000 gray images of 28x28, scaled to [0, 1] and otherwise raw (not centered)."""

    name = "fashion_mnist"
    title = "Fashion-MNIST"
    defaults = Defaults(
        steps=600,
        batch_size=256,
        width=128,
        depth=3,
        rates=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
        target_loss=0.37,
    )

    @classmethod
    def load(cls, data_dir: Path | None = None) -> Self:
        """Read the images.

        Args:
            data_dir: folder with ``fashion_mnist.npz`` or the four official ``.gz`` files. None:
                the folder that JAXNORM_DATA names, or, without it, the user's cache folder, filled
                by a download.

        Raises:
            DataError: for a folder without the data, a failed download, a damaged file.
        """
        folder = named_folder(data_dir)
        arrays = download() if folder is None else read_folder(folder)
        for name in ("y_train", "y_test"):
            if arrays[name].max() > 9:
                raise DataError(
                    f"{folder}: {name}: got a label {arrays[name].max()}, expected 0 ... 9"
                )
        return cls(
            _samples(arrays["x_train"], arrays["y_train"]),
            _samples(arrays["x_test"], arrays["y_test"]),
        )


def read_folder(folder: Path) -> dict[str, np.ndarray]:
    """Read the four arrays from a folder, which is left as it is.

    Raises:
        DataError: for a folder that does not hold them whole; the message says what it wants.
    """
    checked_folder(folder, CONTENT)
    if (folder / ARCHIVE).exists():
        return read_npz(folder / ARCHIVE, SHAPES)
    missing = [file for file in OFFICIAL.values() if not (folder / file).exists()]
    if missing:
        raise DataError(
            f"{folder}: holds neither {ARCHIVE} nor {', '.join(missing)}; {way_out(CONTENT)}"
        )
    return {name: read_idx(folder / file, SHAPES[name]) for name, file in OFFICIAL.items()}


def download(source: str = SOURCE, cache: Path | None = None) -> dict[str, np.ndarray]:
    """Fetch the four official files, once, and read them.

    Args:
        source: address of the folder that holds them.
        cache: where they are kept. None: the user's cache folder for "jaxnorm".

    Raises:
        DataError: for a failed download or a file with another digest; then nothing is kept of it.
    """
    registry = {OFFICIAL[name]: f"sha256:{digest}" for name, digest in DIGESTS.items()}
    paths = fetch("fashion_mnist", source, registry, CONTENT, cache)
    return {name: read_idx(paths[file], SHAPES[name]) for name, file in OFFICIAL.items()}


def _samples(images: np.ndarray, labels: np.ndarray) -> Samples:
    inputs = images.reshape(len(images), -1).astype(np.float32) / np.float32(255)
    return Samples(inputs, labels.astype(np.int32))
