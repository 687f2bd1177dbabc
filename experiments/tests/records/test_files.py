"""Writing: whole or not at all."""

import os
from pathlib import Path

import pytest

from experiments.errors import ConfigError, WriteError
from experiments.records import files


def test_atomic_writing(tmp_path: Path) -> None:
    """A writer that breaks leaves the old file and no other; one that does not replaces it."""
    path = tmp_path / "file.txt"
    files.write_text(path, "old")
    with pytest.raises(RuntimeError), files.atomic(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    with files.atomic(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]
    (tmp_path / "ordinary").touch()
    assert path.stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    """With the folders above it; one that cannot be made is named with the option."""
    files.prepare_folder(tmp_path / "new" / "folder")
    assert not list((tmp_path / "new" / "folder").iterdir())
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match=rf"--out: {folder} cannot be written to"):
            files.prepare_folder(folder)


def fill_disk(path: Path) -> None:
    """Let the system say that there is no room for what this process writes to a file next."""
    path.with_name(f".unfinished-{os.getpid()}-{path.name}").symlink_to("/dev/full")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    files.write_text(path, "old")
    fill_disk(path)
    with pytest.raises(
        WriteError, match=r"file.txt: cannot be written \(No space left on device\)"
    ):
        files.write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    (tmp_path / ".file.txt.process").symlink_to("/dev/full")
    with files.alone(path):
        pass


def test_one_run_at_a_time_writes_a_file(tmp_path: Path) -> None:
    """The second one is told who the first one is; another file is free, and so is this one later.

    What a killed run has left is removed: of this file, not of others.
    """
    names = "sweep.jsonl", "sweep_few.png", "rates.jsonl"
    *left, other = (tmp_path / f".unfinished-1-{name}" for name in names)
    for path in (*left, other):
        path.touch()
    file = tmp_path / "sweep.jsonl"
    with files.alone(file):
        assert not any(path.exists() for path in left)
        assert other.exists()
        with (
            pytest.raises(ConfigError, match=rf"process {os.getpid()} on .* is writing {file}"),
            files.alone(file),
        ):
            pass
        with files.alone(tmp_path / "rates.jsonl"):
            assert not other.exists()
    with files.alone(file):
        pass


def test_a_folder_that_cannot_be_locked_is_told(tmp_path: Path) -> None:
    (tmp_path / ".sweep.jsonl.lock").mkdir()
    with (
        pytest.raises(WriteError, match=r"sweep.jsonl.lock: cannot be locked"),
        files.alone(tmp_path / "sweep.jsonl"),
    ):
        pass
