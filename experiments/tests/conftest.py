"""What the tests share: a small Fashion-MNIST of noise, and small comparisons run once."""

import io
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console

from experiments.compare import run
from experiments.options import CompareConfig
from experiments.workloads import fashion_mnist, sources

# Before JAX starts: devices to shard over, and as many as the other tests have, with which these
# may share a process.
jax.config.update("jax_num_cpu_devices", 8)

SMALL = {"x_train": (40, 28, 28), "y_train": (40,), "x_test": (10, 28, 28), "y_test": (10,)}


@pytest.fixture
def small_shapes(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[int, ...]]:
    """Let 40 + 10 images pass for Fashion-MNIST."""
    monkeypatch.setattr(fashion_mnist, "SHAPES", SMALL)
    monkeypatch.delenv(sources.VARIABLE, raising=False)
    return SMALL


@pytest.fixture
def arrays(small_shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Images and labels of that size."""
    generator = np.random.default_rng(0)
    return {
        name: generator.integers(0, 256 if name[0] == "x" else 10, shape).astype(np.uint8)
        for name, shape in small_shapes.items()
    }


@pytest.fixture
def data_dir(tmp_path: Path, arrays: dict[str, np.ndarray]) -> Path:
    """A folder with those arrays as ``fashion_mnist.npz``."""
    folder = tmp_path / "data"
    folder.mkdir()
    np.savez_compressed(folder / fashion_mnist.ARCHIVE, **arrays)
    return folder


def smoke_config(workload: str, out: Path) -> CompareConfig:
    """Five steps of everything; the largest rate is too large for anything."""
    return CompareConfig(
        workload=workload,
        steps=5,
        rates=(0.01, 0.1, 1e30),
        seeds=2,
        batch_size=32,
        width=8,
        depth=1,
        timing=False,
        out=out,
    )


@dataclass(frozen=True)
class Results:
    """What a comparison has left: its folder and its words."""

    config: CompareConfig
    folder: Path
    text: str


def _smoke(config: CompareConfig) -> Results:
    output = io.StringIO()
    assert run(config, Console(file=output, width=200)) == 0
    return Results(config, config.out, " ".join(output.getvalue().split()))


@pytest.fixture(scope="session")
def photo_results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """A five-step comparison on the photograph."""
    return _smoke(smoke_config("photo", tmp_path_factory.mktemp("photo") / "new" / "folder"))


@pytest.fixture(scope="session")
def digits_results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """A five-step comparison of some methods on the digits."""
    config = smoke_config("digits", tmp_path_factory.mktemp("digits") / "new" / "folder")
    return _smoke(replace(config, methods=("plain", "batchnorm", "neuronwise")))
