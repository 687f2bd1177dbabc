"""Data that is missing, truncated or wrong: an error that names it, and nothing left behind."""

import functools
import gzip
import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from experiments.__main__ import main
from experiments.errors import DataError
from experiments.workloads import fashion_mnist
from experiments.workloads.fashion_mnist import ARCHIVE, OFFICIAL, FashionMnist, download
from experiments.workloads.reading import read_idx


def idx(array: np.ndarray) -> bytes:
    """An array in the format of the official files."""
    head = bytes([0, 0, 8, array.ndim])
    return head + np.array(array.shape, ">u4").tobytes() + array.tobytes()


@pytest.fixture
def official(tmp_path: Path, arrays: dict[str, np.ndarray]) -> Path:
    """A folder with the four official files, of a small size."""
    folder = tmp_path / "official"
    folder.mkdir()
    for name, file in OFFICIAL.items():
        (folder / file).write_bytes(gzip.compress(idx(arrays[name])))
    return folder


@pytest.fixture
def server(official: Path) -> Iterator[str]:
    """The address of those files on a server of this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(official))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{web.server_port}/"
        web.shutdown()


@pytest.mark.parametrize("form", ["npz", "gz"])
def test_folder_is_read_and_left_alone(
    form: str, data_dir: Path, official: Path, arrays: dict[str, np.ndarray]
) -> None:
    """Both forms give the same samples, and the folder stays as it was."""
    folder = data_dir if form == "npz" else official
    before = {path: path.read_bytes() for path in folder.iterdir()}
    workload = FashionMnist.load(folder)
    np.testing.assert_array_equal(workload.test.targets, arrays["y_test"])
    inputs = arrays["x_train"].reshape(40, 784) / np.float32(255)
    np.testing.assert_array_equal(workload.train.inputs, inputs)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.95, 0.999])
def test_truncated_npz_is_named(keep: float, data_dir: Path) -> None:
    """However much of the archive is left."""
    path = data_dir / ARCHIVE
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(DataError, match=rf"{path}: truncated or damaged.*whole copy"):
        FashionMnist.load(data_dir)


def test_damaged_npz_is_named(data_dir: Path) -> None:
    """A single wrong byte in the images is found."""
    path = data_dir / ARCHIVE
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 0xFF
    path.write_bytes(whole)
    with pytest.raises(DataError, match=rf"{path}: truncated or damaged"):
        FashionMnist.load(data_dir)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_train": np.zeros((39, 28, 28), np.uint8)}, r"x_train: got shape \(39, 28, 28\)"),
        ({"x_train": np.zeros((40, 784), np.uint8)}, r"expected \(40, 28, 28\) of uint8"),
        ({"y_test": np.zeros(10, np.int64)}, "y_test: got shape .* of int64"),
        ({"y_test": None}, "expected x_train, y_train, x_test, y_test"),
        ({"y_train": np.full(40, 10, np.uint8)}, "y_train: got a label 10"),
        ({"y_train": np.array([{}] * 40)}, "truncated or damaged.*Object arrays"),
    ],
)
def test_wrong_npz_is_named(
    change: dict[str, np.ndarray], message: str, data_dir: Path, arrays: dict[str, np.ndarray]
) -> None:
    """Wrong shape, type, label, a missing array, a pickle: what was got and expected."""
    left = {name: a for name, a in (arrays | change).items() if a is not None}
    np.savez(data_dir / ARCHIVE, **left)
    with pytest.raises(DataError, match=message) as caught:
        FashionMnist.load(data_dir)
    assert str(data_dir) in str(caught.value)


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[:-30],
        lambda whole: whole[:10] + b"\xff" + whole[11:],
        lambda whole: gzip.compress(gzip.decompress(whole)[:-1]),
        lambda whole: gzip.compress(b"\0\0\x0d" + gzip.decompress(whole)[3:]),
        lambda whole: gzip.compress(b"\0\0\x08"),
        lambda whole: b"<html>no such page</html>",
    ],
)
def test_damaged_gz_is_named(damage, official: Path) -> None:
    """Cut off, damaged inside, short of a value, of another type, without a head, no gzip."""
    path = official / OFFICIAL["x_test"]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=f"{path}: truncated or damaged"):
        FashionMnist.load(official)


def test_gz_of_another_shape_is_named(official: Path) -> None:
    """A whole file with other contents is refused, with both shapes."""
    path = official / OFFICIAL["y_test"]
    with pytest.raises(DataError, match=rf"{path}: content: got shape \(10,\).*\(11,\) of uint8"):
        read_idx(path, (11,))


def test_missing_folder_names_the_way_out(tmp_path: Path, small_shapes: object) -> None:
    """The message has the folder, the option, the variable and what the folder must hold."""
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(DataError) as caught:
            FashionMnist.load(folder)
        for part in (str(folder), "--data-dir", "JAXNORM_DATA", ARCHIVE, "downloaded"):
            assert part in str(caught.value)


def test_variable_names_the_folder(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JAXNORM_DATA is read; the option goes before it."""
    monkeypatch.setenv("JAXNORM_DATA", str(data_dir))
    assert len(FashionMnist.load().train) == 40
    with pytest.raises(DataError, match="nowhere"):
        FashionMnist.load(tmp_path / "nowhere")


def test_download_checks_the_digest(server: str, tmp_path: Path, small_shapes: object) -> None:
    """A file that is not the official one is named and not kept."""
    with pytest.raises(DataError, match=f"{OFFICIAL['x_train']}: not the official file"):
        download(server, cache=tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_download_happens_once(
    server: str,
    official: Path,
    tmp_path: Path,
    arrays: dict[str, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What has the right digest is kept, and read from the cache the next time."""
    for name, file in OFFICIAL.items():
        digest = hashlib.sha256((official / file).read_bytes()).hexdigest()
        monkeypatch.setitem(fashion_mnist.DIGESTS, name, digest)
    for source in (server, "http://127.0.0.1:9/"):  # nobody answers at the second
        read = download(source, cache=tmp_path / "cache")
        for name, array in arrays.items():
            np.testing.assert_array_equal(read[name], array)


def test_download_that_fails_names_the_way_out(tmp_path: Path, small_shapes: object) -> None:
    """Without a network the message says how to do without it."""
    with pytest.raises(DataError, match=r"download failed.*--data-dir"):
        download("http://127.0.0.1:9/", cache=tmp_path / "cache")


def test_official_digests_are_fixed() -> None:
    """The four digests are SHA-256, each another one, from a fixed commit."""
    assert set(OFFICIAL) == set(fashion_mnist.DIGESTS) == set(fashion_mnist.SHAPES)
    assert len({d for d in fashion_mnist.DIGESTS.values() if len(d) == 64}) == 4
    assert "/b2617bb6d3ffa2e429640350f613e3291e10b141/" in fashion_mnist.SOURCE


def test_command_line_names_the_file_and_writes_nothing(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 2, one line on the error stream, no traceback, no results folder."""
    path = data_dir / ARCHIVE
    path.write_bytes(path.read_bytes()[:500])
    out = tmp_path / "out"
    words = ["compare", "--workload", "fashion_mnist", "--data-dir", str(data_dir)]
    assert main([*words, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}: truncated or damaged")
    assert "Traceback" not in error
    assert not out.exists()
