"""Writing results so that no half-written file is ever seen."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from experiments.errors import ConfigError


def prepare_folder(folder: Path, option: str = "--out") -> None:
    """Create a folder for results, and find out now rather than at the end if that cannot be.

    Args:
        folder: which.
        option: that names it.

    Raises:
        ConfigError: if it cannot be created or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"{option}: {folder} cannot be written to ({error.strerror}); name another folder"
        ) from error


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; it becomes `path` at the end, or vanishes on an error."""
    temporary = path.with_name(f".unfinished-{os.getpid()}{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    write_bytes(path, text.encode())
