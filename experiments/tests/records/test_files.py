"""Writing: whole or not at all."""

from pathlib import Path

import pytest

from experiments.errors import ConfigError
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
