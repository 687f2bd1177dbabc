"""Writing results so that no half-written file is ever seen, and by one run at a time."""

import os
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from experiments.errors import ConfigError, WriteError

_UNFINISHED = ".unfinished-"


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
def alone(file: Path) -> Iterator[None]:
    """Let no other run write a file, and those of its name, while this one does.

    What a killed run has left of them half written is removed.

    The lock is the system's, on a file beside it that stays: it ends with the process that holds
    it, however that ends, so none is ever stale.

    Args:
        file: of the results.

    Raises:
        ConfigError: if another run is writing it; the message says which.
        WriteError: if it cannot be found out.
    """
    path, holder = (file.with_name(f".{file.name}.{end}") for end in ("lock", "process"))
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise ConfigError(
            f"--out: {_text(holder) or 'another process'} is writing {file}; wait for it, or name "
            "another folder"
        ) from error
    except (OSError, NotImplementedError) as error:
        raise WriteError(f"{path}: cannot be locked ({error}); name another folder") from error
    try:
        with suppress(OSError):  # a full disk is told when a result does not fit on it
            holder.write_text(f"process {os.getpid()} on {platform.node()}\n")
        for left in file.parent.glob(f"{_UNFINISHED}*-{file.stem}[._]*"):
            left.unlink(missing_ok=True)
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError:  # it has come to its end just now
        return ""


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; it becomes `path` at the end, or vanishes on an error.

    Raises:
        WriteError: for what the system says against it (a full disk, say).
    """
    temporary = path.with_name(f"{_UNFINISHED}{os.getpid()}-{path.name}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())  # some file systems find out only now that there is no room
        temporary.replace(path)
    except OSError as error:
        raise WriteError(
            f"{path}: cannot be written ({error.strerror or error}); "
            "what it held before is as it was"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    write_bytes(path, text.encode())
