"""Sweeps that are killed at random moments come to the same numbers, bit for bit.

With ``JAXNORM_KILLS=20`` twenty sweeps train for real, each killed once and run again:

    JAXNORM_KILLS=20 pytest -n 0 -s experiments/tests/evidence/test_killed.py
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from experiments.evidence import problems, sweep
from experiments.evidence.options import SweepOptions
from experiments.evidence.problems import Problem
from experiments.evidence.sweep import Cell, Sweep
from experiments.records import content
from experiments.training.trainer import Knobs, Runs
from experiments.workloads import STUDIED

SMALL = Problem("wine", "adam", 16, 20, 0.01, 0.1, fresh=True)
REAL = int(os.environ.get("JAXNORM_KILLS", "0"))
"""How many sweeps that train are killed; 0: one of made-up numbers, twice."""

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


def test_a_sweep_that_is_killed_goes_on_to_the_same_numbers(tmp_path: Path) -> None:
    """Nothing is lost, nothing comes twice, no file is half there, and no lock is left."""
    module, seed = __name__, random.randrange(10**6)
    program = f"import sys; from {module} import drive; drive(*sys.argv[1:])"
    command = [sys.executable, "-c", program, str(tmp_path), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"seed {seed}: {done.stderr}"
    print(done.stdout)  # with -s: when each was killed
    whole, *parts = sorted(tmp_path.iterdir())
    assert len(parts) == max(1, REAL)
    assert len(_numbers(whole)) > 0
    for part in parts:
        assert _numbers(part) == _numbers(whole), f"seed {seed}, {part.name}"
        for name in ("sweep.csv", "sweep.md"):
            assert (part / name).read_bytes() == (whole / name).read_bytes()
        assert not list(part.glob(".unfinished*"))


def _numbers(folder: Path) -> list[dict[str, Any]]:
    """All but when, and the commit, which may be another one in a quarter of an hour."""
    records = [json.loads(line) for line in (folder / "sweep.jsonl").read_text().splitlines()]
    return [{**r, **dict.fromkeys(("finished", "git_sha", "git_dirty"))} for r in records]


def drive(folder: str, seed: str) -> None:
    """Run one sweep whole, then others in pieces. A process by itself: it forks before JAX starts.

    Args:
        folder: for the folders of the sweeps.
        seed: of the moments.
    """
    moments = random.Random(seed)
    problems.PROBLEMS["wine_adam"] = SMALL
    if not REAL:
        _make_up()
    STUDIED["wine"].load()  # what takes long and is the same for all of them
    content.code_digest()
    begin = time.monotonic()
    assert _wait(_fork(partial(_sweep, Path(folder, "0")))) == 0
    whole = time.monotonic() - begin
    for number in range(1, max(1, REAL) + 1):
        part = Path(folder, f"{number:02}")
        run, killed = partial(_sweep, part), 0
        while killed < (1 if REAL else 2):
            delay = moments.uniform(0, whole if REAL else whole / 2)
            process = _fork(run)
            time.sleep(delay)
            os.kill(process, signal.SIGKILL)
            status = _wait(process)
            assert status in (-signal.SIGKILL, 0)
            print(f"{number}: after {delay:.2f} of {whole:.2f} s: {status}")
            if status == 0:  # it was quicker than that: another one
                shutil.rmtree(part)
            killed = killed + 1 if status else 0
        assert _wait(_fork(run)) == 0


def _fork(work: Callable[[], int]) -> int:
    process = os.fork()
    if not process:
        try:
            os._exit(work())
        finally:
            os._exit(1)
    return process


def _wait(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _sweep(folder: Path) -> int:
    methods = ("centralize",) if REAL else ("centralize", "muon", "bnp", "neuronwise")
    options = SweepOptions(problems=("wine_adam",), methods=methods, out=folder)
    return Sweep(options).run(Console(quiet=True))


def _make_up() -> None:
    """Numbers in the place of training, no pictures, and files that take time to be written."""

    def make(self: Sweep, cell: Cell) -> Callable[[Knobs], Runs]:
        def train(knobs: Knobs) -> Runs:
            seeds = sweep.FINAL if cell.stage == "final" else sweep.SCREENED
            generator = np.random.default_rng(list(json.dumps(cell).encode()))
            losses = np.sort(generator.random((len(knobs.rate), seeds, 50)))[..., ::-1]
            return Runs(losses, generator.random((len(knobs.rate), seeds, 3)), None, 0.0, 0.0)

        return train

    def write_bytes(path: Path, content: bytes) -> None:
        with path.open("wb", buffering=0) as file:
            file.write(content[: len(content) // 2])
            time.sleep(0.06)
            file.write(content[len(content) // 2 :])

    patch = pytest.MonkeyPatch()
    patch.setattr(Sweep, "_make", make)
    patch.setattr(Sweep, "pictures", lambda *_: {})
    patch.setattr(Path, "write_bytes", write_bytes)
