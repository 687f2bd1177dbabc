"""`python -m experiments theory`, as a user meets it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from experiments.__main__ import main
from experiments.theory import job, spectra
from experiments.theory.claims import Claim
from experiments.theory.options import TheoryOptions
from experiments.theory.spectra import Curvature
from experiments.workloads import WORKLOADS, Workload


def _measured(
    workload: Workload, steps: tuple[int, ...], width: int, depth: int
) -> Iterator[Curvature]:
    assert (steps, width, depth) == ((0, 2), 6, 1)
    density = np.array([0.1, 1.0]), np.array([0.9, 0.1])
    for name in ("plain", "bnp", "neuronwise", "batchnorm"):
        for step in steps:
            yield Curvature(workload.name, step, name, 2.0, 1.0, 3.0, (1.5,), density)


def test_it_writes_tables_and_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "measure", _measured)
    words = ["theory", "--workloads", "digits", "--steps", "2", "0", "--width", "6"]
    assert main([*words, "--depth", "1", "--out", str(tmp_path)]) == 0
    assert "digits: neuron-wise, 2 steps" in capsys.readouterr().out
    names = {"claims.md", "spectra.md"} | {
        f"{n}{s}" for n in ("conditioning", "spectra") for s in (".png", ".svg")
    }
    assert {path.name for path in tmp_path.iterdir()} == names
    rows = (tmp_path / "spectra.md").read_text().splitlines()[2:]
    assert rows[1] == "| digits, plain | 2 | 2 | 1 | 3 | 1.5 |"
    assert len(rows) == 8


def test_a_claim_that_does_not_hold_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "CLAIMS", (Claim("9", "one is nought", lambda: 1.0),))
    console = Console(record=True, width=120)
    assert job.run(TheoryOptions(spectra=False, out=tmp_path), console) == 1
    assert "**no**" in (tmp_path / "claims.md").read_text()
    assert not (tmp_path / "spectra.md").exists()


def test_the_block_of_a_neuron_is_rounder_in_its_coordinates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(spectra, "LANCZOS", 6)
    monkeypatch.setattr(spectra, "PROBES", 1)
    photo = WORKLOADS["photo"].load()
    found = [each for each in spectra.measure(photo, (0,), 6, 1) if each.blocks]
    by = {each.coordinates: each for each in found}
    assert by["neuronwise"].blocks[0] < by["bnp"].blocks[0] < by["plain"].blocks[0]
    for each in found:
        values, weights = each.density
        np.testing.assert_allclose([values.max(), weights.sum()], 1.0, rtol=1e-6)
