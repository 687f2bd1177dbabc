"""The whole comparison: every file promised, and numbers that add up."""

import json
import statistics
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from experiments.methods import METHODS
from experiments.tests.conftest import Results

PLOTS = {"learning_curves", "rate_sensitivity"}


def expected_files(plots: set[str]) -> set[str]:
    """Everything a comparison leaves behind."""
    return {"runs.jsonl", "table.md"} | {p + s for p in plots for s in (".png", ".svg")}


@pytest.fixture(params=["photo", "digits"])
def results(request: pytest.FixtureRequest) -> Results:
    """Each smoke run."""
    return request.getfixturevalue(f"{request.param}_results")


def read(folder: Path, name: str = "runs.jsonl") -> list[dict[str, Any]]:
    """The records of a folder, read without the code under test."""
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def table(folder: Path) -> dict[str, list[str]]:
    """The cells of the table by the title of their method."""
    lines = [line for line in (folder / "table.md").read_text().splitlines() if line[:1] == "|"]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in cells[2:]}


def names(folder: Path) -> set[str]:
    """What lies in a folder, hidden files too, without the lock and who held it, which may stay."""
    return {path.name for path in folder.iterdir() if path.suffix not in (".lock", ".process")}


def test_every_promised_file_is_written(photo_results: Results, digits_results: Results) -> None:
    """And no other: no temporary file is left."""
    assert names(photo_results.folder) == expected_files(PLOTS | {"pictures"})
    assert names(digits_results.folder) == expected_files(PLOTS)


def test_output_shows_time_left_and_notes(photo_results: Results) -> None:
    """In a pipe the last line is at 100 %; the notes say what chose the rate."""
    assert "100%" in photo_results.text
    assert "left 0:00:00" in photo_results.text
    assert "neuron-wise: best rate" in photo_results.text
    assert "nothing was selected by it" in photo_results.text
    assert str(photo_results.folder) in photo_results.text
    for name in expected_files(PLOTS | {"pictures"}):
        assert name in photo_results.text


def test_plots_are_pictures(results: Results) -> None:
    """Each PNG opens and is not blank; each SVG is one."""
    for path in results.folder.glob("*.png"):
        pixels = imread(path)
        assert min(pixels.shape[:2]) > 500
        assert pixels[..., :3].std() > 0.01
    for path in results.folder.glob("*.svg"):
        assert ElementTree.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_every_run_has_a_record(results: Results) -> None:
    """One for each method, rate and seed, with its curve and where it comes from."""
    records = read(results.folder)
    runs = {(r["method"], r["rate"], r["seed"]) for r in records}
    assert len(records) == len(runs) == len(results.config.methods) * 3 * 2
    assert {r["method"] for r in records} == set(results.config.methods)
    for record in records:
        assert len(record["curve"]) == record["config"]["steps"] == 5
        assert record["device"]
        assert record["versions"]["jax"]
        assert "git_sha" in record
    assert any(r["diverged"] for r in records)
    assert not all(r["diverged"] for r in records)


def test_table_is_made_of_the_records(results: Results) -> None:
    """Best rate, means and deviations, recomputed from the curves."""
    records = read(results.folder)
    for method in results.config.methods:
        runs = [r for r in records if r["method"] == method]
        finals: dict[float, list[float]] = {}
        for run in runs:
            loss = run["curve"][-1]  # the last 5 % of five steps is one step
            finals.setdefault(run["rate"], []).append(float("inf") if loss is None else loss)
        best = min(finals, key=lambda rate: statistics.mean(finals[rate]))
        cells = table(results.folder)[METHODS[method].title]
        assert cells[0].split()[0] == f"{best:g}"
        assert ("edge" in cells[0]) == (best in (min(finals), max(finals)))
        check(cells[2], finals[best], 3e-3)
        check(cells[-2], [r["test"] for r in runs if r["rate"] == best], 1e-2)


def check(cell: str, values: list[float], tolerance: float) -> None:
    """Hold "mean ± deviation" against values."""
    mean, deviation = map(float, cell.split(" ± "))
    scale = max(abs(statistics.mean(values)), 1e-9)
    assert abs(mean - statistics.mean(values)) <= tolerance * max(scale, 1)
    assert deviation == pytest.approx(statistics.stdev(values), rel=0.5, abs=tolerance)


def test_methods_see_the_same_start(results: Results) -> None:
    """Same weights and minibatch: the methods with the plain forward pass share a first loss."""
    first = {(r["method"], r["seed"]): r["curve"][0] for r in read(results.folder)}
    for seed in range(2):
        for method in {"bnp", "neuronwise"} & set(results.config.methods):
            assert first["plain", seed] == pytest.approx(first[method, seed], rel=1e-6)
        assert first["plain", seed] != pytest.approx(first["batchnorm", seed], rel=1e-3)
    assert first["plain", 0] != pytest.approx(first["plain", 1], rel=1e-6)
