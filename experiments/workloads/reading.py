"""Data files: read, checked, and named in every complaint; nothing is ever written to them."""

import gzip
import math
import struct
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from experiments.errors import DataError

_DAMAGED = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error, struct.error)


def read_npz(path: Path, expected: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Read uint8 arrays from an ``.npz``.

    Args:
        path: the file.
        expected: the arrays that are wanted, and their shapes.

    Raises:
        DataError: for a file that cannot be read whole, lacks an array or holds another one.
    """
    try:
        # Opened here, because np.load leaves a damaged file open.
        with path.open("rb") as file, _archive(file) as archive:
            missing = [name for name in expected if name not in archive.files]
            if missing:
                raise DataError(
                    f"{path}: got the arrays {', '.join(archive.files) or '(none)'}, "
                    f"expected {', '.join(expected)}; is this another data set?"
                )
            arrays = {name: archive[name] for name in expected}
    except _DAMAGED as error:
        raise _damaged(path, error) from error
    for name, shape in expected.items():
        _check(path, name, arrays[name], shape)
    return arrays


def read_idx(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Read a gzipped IDX file of bytes, the format MNIST and Fashion-MNIST come in.

    Args:
        path: the ``.gz`` file.
        shape: what the array must be.

    Raises:
        DataError: for a file that cannot be read whole or holds something else.
    """
    try:
        with gzip.open(path, "rb") as file:
            raw = file.read()
        zero, kind, dimensions = struct.unpack(">HBB", raw[:4])
        if (zero, kind) != (0, 8):
            raise ValueError(f"starts with {raw[:4].hex()}, which is no IDX file of bytes")
        lengths = struct.unpack(f">{dimensions}I", raw[4 : 4 + 4 * dimensions])
        body = raw[4 + 4 * dimensions :]
        if len(body) != math.prod(lengths):
            raise ValueError(f"holds {len(body)} values where its head says {lengths}")
    except _DAMAGED as error:
        raise _damaged(path, error) from error
    array = np.frombuffer(body, np.uint8).reshape(lengths)
    _check(path, "content", array, shape)
    return array


def _archive(file: BinaryIO) -> np.lib.npyio.NpzFile:
    if not zipfile.is_zipfile(file):
        raise ValueError("no whole zip archive, which an .npz is")
    file.seek(0)
    return np.load(file, allow_pickle=False)


def _damaged(path: Path, error: Exception) -> DataError:
    if isinstance(error, PermissionError | IsADirectoryError):
        return DataError(f"{path}: cannot be read ({error.strerror})")
    return DataError(
        f"{path}: truncated or damaged ({type(error).__name__}: {error}); replace it with a whole "
        "copy"
    )


def _check(path: Path, name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    if array.shape != shape or array.dtype != np.uint8:
        raise DataError(
            f"{path}: {name}: got shape {array.shape} of {array.dtype}, expected {shape} of uint8"
        )
