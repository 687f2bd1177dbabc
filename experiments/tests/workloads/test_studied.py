"""The workloads of the studies: what they read, what they refuse, what their losses are."""

import io
import tarfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.errors import DataError
from experiments.workloads import STUDIED, WORKLOADS, cifar10, mnist, shakespeare, sources
from experiments.workloads.cifar10 import FILES, FOLDER, Cifar10
from experiments.workloads.regression import Diabetes, Friedman
from experiments.workloads.shakespeare import LENGTH, TEXT, Shakespeare

IMAGES = 3


@pytest.fixture
def batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with six files of three images."""
    monkeypatch.setattr(cifar10, "IMAGES", IMAGES)
    monkeypatch.delenv(sources.VARIABLE, raising=False)
    generator = np.random.default_rng(0)
    (tmp_path / FOLDER).mkdir()
    for file in FILES:
        records = generator.integers(0, 256, (IMAGES, 3073)).astype(np.uint8)
        records[:, 0] %= 10
        (tmp_path / FOLDER / file).write_bytes(records.tobytes())
    return tmp_path


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a long enough text of three characters."""
    monkeypatch.delenv(sources.VARIABLE, raising=False)
    letters = np.random.default_rng(0).choice(list("abc"), 200 * LENGTH + 1)
    (tmp_path / TEXT).write_text("".join(letters))
    return tmp_path


def test_names_are_unique() -> None:
    """What only studies learn is beside what is compared."""
    assert set(WORKLOADS) < set(STUDIED)
    assert all(name == workload.name for name, workload in STUDIED.items())


def test_cifar_records_are_read(batches: Path) -> None:
    """Label, then three planes; halved, standardized per color over the training images."""
    workload = Cifar10.load(batches)
    assert (len(workload.train), len(workload.test)) == (5 * IMAGES, IMAGES)
    raw = np.frombuffer((batches / FOLDER / FILES[1]).read_bytes(), np.uint8).reshape(IMAGES, -1)
    np.testing.assert_array_equal(workload.train.targets[IMAGES : 2 * IMAGES], raw[:, 0])
    images = workload.train.inputs.reshape(-1, 16, 16, 3)
    np.testing.assert_allclose(images.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(images.std((0, 1, 2)), 1, rtol=1e-4)
    green = raw[0, 1 + 1024 : 1 + 2048].reshape(32, 32).astype(float)
    block, other = (green[row : row + 2, 6:8].mean() for row in (4, 20))
    every = np.concatenate(
        [np.frombuffer((batches / FOLDER / f).read_bytes(), np.uint8) for f in FILES[:5]]
    ).reshape(-1, 3073)[:, 1 + 1024 : 1 + 2048]
    std = every.reshape(-1, 16, 2, 16, 2).mean((2, 4)).std()
    found = images[IMAGES, 2, 3, 1] - images[IMAGES, 10, 3, 1]
    assert found == pytest.approx((block - other) / std, rel=1e-4)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), f"holds no {FILES[2]}.*--data-dir"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), f"{FILES[2]}: got 9218 bytes"),
        (lambda path: path.write_bytes(b"\x0a" + path.read_bytes()[1:]), "got a label 10"),
    ],
)
def test_damaged_cifar_is_named(damage, message: str, batches: Path) -> None:
    """Missing, cut off, or with a label that there is not."""
    damage(batches / FOLDER / FILES[2])
    with pytest.raises(DataError, match=message):
        Cifar10.load(batches)


def test_cifar_archive_is_read_like_the_folder(
    batches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the download holds; one that is no archive is named."""
    path = tmp_path / "archive.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for file in FILES:
            raw = (batches / FOLDER / file).read_bytes()
            member = tarfile.TarInfo(f"{FOLDER}/{file}")
            member.size = len(raw)
            archive.addfile(member, io.BytesIO(raw))
    monkeypatch.setattr(cifar10, "fetch", lambda *args: {cifar10.ARCHIVE: path})
    for one, other in zip(cifar10.download(), cifar10.read_folder(batches), strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match=f"{path}: damaged"):
        cifar10.download()


def test_next_characters_are_the_targets(play: Path) -> None:
    """Each target is the input after it; the test part is the end of the text."""
    workload = Shakespeare.load(play)
    text = (play / TEXT).read_text()
    assert workload.outputs == 3
    assert (len(workload.train), len(workload.test)) == (180, 20)
    inputs, targets = workload.train.inputs, workload.train.targets
    assert inputs.dtype == targets.dtype == np.int32
    np.testing.assert_array_equal(inputs[:, 1:], targets[:, :-1])
    np.testing.assert_array_equal(inputs[1:, 0], targets[:-1, -1])
    spelled = "".join(workload.alphabet[code] for code in workload.test.targets[-1])
    assert spelled == text[-LENGTH:]
    right = 100.0 * jnp.eye(3)[targets[:4]]
    assert workload.loss(right, targets[:4]) == pytest.approx(0, abs=1e-6)
    np.testing.assert_array_equal(workload.score(right, targets[:4]), 1)
    assert np.isnan(workload.score(right * jnp.nan, targets[:4])).all()


def test_missing_text_names_the_way_out(play: Path) -> None:
    """No folder, no file, next to nothing in it."""
    with pytest.raises(DataError, match=r"nowhere: no such folder.*JAXNORM_DATA"):
        Shakespeare.load(play / "nowhere")
    (play / TEXT).write_text("To be")
    with pytest.raises(DataError, match=f"{TEXT}: got 5 characters"):
        Shakespeare.load(play)
    (play / TEXT).unlink()
    with pytest.raises(DataError, match=f"{TEXT}: cannot be read.*--data-dir"):
        Shakespeare.load(play)


def test_downloads_are_checked() -> None:
    """By digests that their authors, or a file known as official, have."""
    assert len(cifar10.DIGEST.removeprefix("md5:")) == 32
    assert len(shakespeare.DIGEST.removeprefix("sha256:")) == 64


@pytest.mark.parametrize(("kind", "count", "inputs"), [(Friedman, 4000, 4), (Diabetes, 442, 10)])
def test_regressions_are_standardized(kind, count: int, inputs: int) -> None:
    """By the training samples alone; the test figure of an ignorant network is about 1."""
    workload = kind.load()
    assert len(workload.train) + len(workload.test) == count
    for array, width in ((workload.train.inputs, inputs), (workload.train.targets, 1)):
        assert array.shape[1] == width
        assert array.dtype == np.float32
        np.testing.assert_allclose(array.mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(array.std(0), 1, rtol=1e-4)
    assert abs(workload.test.inputs.mean(0)).max() > 1e-4
    nothing = jnp.zeros_like(workload.test.targets)
    assert workload.score(nothing, workload.test.targets).mean() == pytest.approx(1, abs=0.3)
    assert workload.loss(nothing, nothing + 2) == 4


def test_standardized_inputs(batches: Path) -> None:
    """The same samples at mean 0, variance 1; the workload itself stays as it was."""
    workload = Cifar10.load(batches)
    before = workload.train.inputs.copy()
    same = workload.standardized()
    np.testing.assert_allclose(same.train.inputs.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(same.train.inputs.std(0), 1, rtol=0.02)
    np.testing.assert_array_equal(workload.train.inputs, before)
    np.testing.assert_array_equal(same.test.targets, workload.test.targets)


def test_tables_are_standardized_and_have_their_classes() -> None:
    for name, classes in (("wine", 3), ("breast_cancer", 2)):
        workload = STUDIED[name].load()
        assert workload.outputs == classes == len(np.unique(workload.train.targets))
        np.testing.assert_allclose(workload.train.inputs.mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(workload.train.inputs.std(0), 1, atol=1e-5)
        assert abs(workload.test.inputs.mean(0)).max() > 0.01


def test_mnist_and_its_autoencoder_from_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = {name: (IMAGES, *shape[1:]) for name, shape in mnist.SHAPES.items()}
    monkeypatch.setattr(mnist, "SHAPES", shapes)
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.integers(0, 10 if name.startswith("y") else 256, shape).astype(np.uint8)
        for name, shape in shapes.items()
    }
    np.savez(tmp_path / mnist.ARCHIVE, **arrays)
    digits, images = (STUDIED[name].load(tmp_path) for name in ("mnist", "autoencoder"))
    np.testing.assert_array_equal(digits.train.targets, arrays["y_train"])
    assert images.train.inputs is images.train.targets
    np.testing.assert_allclose(images.test.inputs[1], arrays["x_test"][1].ravel() / 255, rtol=1e-6)
    half = np.full((2, 784), 0.5, np.float32)
    assert float(images.loss(0 * half, half)) == pytest.approx(np.log(2))
    np.testing.assert_allclose(images.score(0 * half, half), 0)
    with pytest.raises(DataError, match="no such folder"):
        STUDIED["mnist"].load(tmp_path / "none")
