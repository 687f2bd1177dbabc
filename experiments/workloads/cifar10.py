"""CIFAR-10: the official binary version, from a folder, or downloaded once and checked."""

import tarfile
import zlib
from pathlib import Path
from typing import Self

import numpy as np

from experiments.errors import DataError
from experiments.workloads.base import Samples
from experiments.workloads.classification import Classification
from experiments.workloads.sources import checked_folder, fetch, named_folder, way_out

FOLDER = "cifar-10-batches-bin"
FILES = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")
"""The last one is the test part."""

CONTENT = f"{FOLDER} (data_batch_1.bin ... data_batch_5.bin, test_batch.bin)"
"""Of a data folder."""

# Its author's page, which states the digest.
SOURCE = "https://www.cs.toronto.edu/~kriz/"
ARCHIVE = "cifar-10-binary.tar.gz"
DIGEST = "md5:c32a1d4ab5d03f1284b67883e8d87530"

IMAGES = 10000
"""In each file."""

SIDE = 32
"""Of an image, before it is halved."""

_RECORD = 1 + 3 * SIDE**2  # a label, then the red, the green and the blue values


class Cifar10(Classification):
    """50000 + 10000 color images of ten classes, halved to 16x16 by means of 2x2 pixels.

    Inputs [N, 768]: rows, columns, colors; each color at mean 0 and variance 1 over the training
    images.
    """

    name = "cifar10"
    title = "CIFAR-10"

    @classmethod
    def load(cls, data_dir: Path | None = None) -> Self:
        """Read the images.

        Args:
            data_dir: folder that holds ``cifar-10-batches-bin``. None: the folder that JAXNORM_DATA
                names, or, without it, the user's cache folder, filled by a download.

        Raises:
            DataError: for a folder without the data, a failed download, a damaged file.
        """
        folder = named_folder(data_dir)
        parts = download() if folder is None else read_folder(folder)
        images = np.concatenate([_halved(pixels) for pixels, _ in parts])
        labels = np.concatenate([label for _, label in parts])
        train = images[: -len(parts[-1][1])]
        mean, std = (of(train, axis=(0, 1, 2), dtype=np.float64) for of in (np.mean, np.std))
        inputs = ((images - mean) / std).astype(np.float32).reshape(len(images), -1)
        cut = len(train)
        return cls(Samples(inputs[:cut], labels[:cut]), Samples(inputs[cut:], labels[cut:]))


def read_folder(folder: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """(pixels [N, 3, 32, 32], labels [N]) of each file; the folder is left as it is.

    Raises:
        DataError: for a folder that does not hold them whole; the message says what it wants.
    """
    inner = checked_folder(folder, CONTENT) / FOLDER
    missing = [file for file in FILES if not (inner / file).exists()]
    if missing:
        raise DataError(f"{inner}: holds no {', '.join(missing)}; {way_out(CONTENT)}")
    return [_parse(inner / file, (inner / file).read_bytes()) for file in FILES]


def download(
    source: str = SOURCE, cache: Path | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The same from the official archive, which is fetched once.

    Args:
        source: address of the folder that holds the archive.
        cache: where it is kept. None: the user's cache folder for "jaxnorm".

    Raises:
        DataError: for a failed download or an archive with another digest.
    """
    path = fetch("cifar10", source, {ARCHIVE: DIGEST}, CONTENT, cache)[ARCHIVE]
    try:
        with tarfile.open(path) as archive:
            members = [archive.extractfile(f"{FOLDER}/{file}") for file in FILES]
            return [_parse(path, member.read()) for member in members if member is not None]
    except (tarfile.TarError, KeyError, EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path}: damaged ({error}); remove it to fetch it again") from error


def _parse(path: Path, raw: bytes) -> tuple[np.ndarray, np.ndarray]:
    if len(raw) != IMAGES * _RECORD:
        raise DataError(
            f"{path}: got {len(raw)} bytes, expected {IMAGES} records of {_RECORD}: truncated or "
            "damaged; replace it with a whole copy"
        )
    records = np.frombuffer(raw, np.uint8).reshape(IMAGES, _RECORD)
    labels = records[:, 0].astype(np.int32)
    if labels.max() > 9:
        raise DataError(f"{path}: got a label {labels.max()}, expected 0 ... 9")
    return records[:, 1:].reshape(IMAGES, 3, SIDE, SIDE), labels


def _halved(pixels: np.ndarray) -> np.ndarray:
    """Means of 2x2 pixels, [N, 3, 32, 32] -> [N, 16, 16, 3], between 0 and 1."""
    blocks = pixels.reshape(len(pixels), 3, SIDE // 2, 2, SIDE // 2, 2)
    means = blocks.mean(axis=(3, 5), dtype=np.float32) / np.float32(255)
    return means.transpose(0, 2, 3, 1)
