"""Every planted bug is caught, as a miss and not as a crash; what has none passes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from parity_tests.mutants import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[1]
FRAMEWORKS = ("jax", "torch")
PLANTED = [
    (framework, mutant)
    for mutant in MUTANTS
    for framework in FRAMEWORKS
    if getattr(mutant, framework) is not None
]

Result = subprocess.CompletedProcess[str]
Run = Callable[[str, Mutant | None], Future[Result]]


def _matrix(scratch: Path, framework: str, mutant: Mutant | None) -> Result:
    """Run the quick matrix of one framework on a copy of its package with a bug, or without."""
    name = mutant.name if mutant else "none"
    folder = scratch / f"{framework} {name}".replace("/", "-")
    package = f"{framework}norm"
    for part in (package, "parity_tests"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    if mutant is not None:
        file = folder / package / mutant.file_in(framework)
        old, new = getattr(mutant, framework)
        source = file.read_text()
        assert source.count(old) == 1, f"{file.name} of {package} must hold {old!r} exactly once"
        file.write_text(source.replace(old, new))
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(folder),
        # One compilation cache for all: they share all operations but a few.
        "JAX_COMPILATION_CACHE_DIR": str(scratch / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    command = [sys.executable, "-m", "parity_tests", "--quick", "--only", framework]
    if mutant is not None:
        command += ["--first", "--rows", mutant.rows]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Start every run at once, two at a time; each test then waits for its own."""
    scratch = tmp_path_factory.mktemp("mutants")
    keys = [*((framework, None) for framework in FRAMEWORKS), *PLANTED]
    with ThreadPoolExecutor(2) as pool:
        futures = {key: pool.submit(partial(_matrix, scratch, *key)) for key in keys}
        yield lambda framework, mutant: futures[framework, mutant]
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_without_a_bug_the_matrix_passes(run: Run, framework: str) -> None:
    """The copy is as good as the original."""
    result = run(framework, None).result()
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("framework", "mutant"), PLANTED, ids=[f"{m.name}, {framework}" for framework, m in PLANTED]
)
def test_a_bug_is_caught(run: Run, mutant: Mutant, framework: str) -> None:
    """Exit code 1 and a miss in words."""
    result = run(framework, mutant).result()
    assert "miss: " in result.stdout, result.stdout + result.stderr
    assert result.returncode == 1, result.stdout + result.stderr
