"""The seconds of a step: what is timed, what is left out, what the tables make of it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from experiments.errors import DataError
from experiments.evidence import job, problems, seconds, stored
from experiments.evidence.options import SweepOptions
from experiments.evidence.problems import Problem
from experiments.evidence.tables import make
from experiments.tests.evidence.test_report import sweep_file
from experiments.tests.evidence.test_sweep import BASELINES, both

SMALL = Problem("wine", "sgd", 16, 4, 0.03, 0.1, fresh=True)


def test_every_method_of_a_known_problem_takes_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(problems.PROBLEMS, "wine_sgd", SMALL)
    sweep_file(tmp_path)
    turns: list[str] = []

    def median(runs: dict) -> dict[str, float]:
        turns.extend(runs)
        return {name: float(len(run())) for name, run in runs.items()}

    monkeypatch.setattr(seconds, "median_seconds", median)
    options = SweepOptions(problems=("wine_sgd", "wine_adam"), seconds=True, out=tmp_path)
    console = Console(record=True, width=120)
    assert seconds.measure(options, console) == 0
    assert turns == ["plain", "batchnorm", "layernorm", "neuronwise"]
    assert seconds.read(tmp_path) == {"wine_sgd": dict.fromkeys(turns, 1.0)}
    text = console.export_text()
    assert "wine_adam: left out" in text
    assert "neuronwise 1.00, in steps of plain" in text
    turns.clear()
    some = replace(options, problems=("wine_sgd",), methods=("layernorm",))
    assert seconds.measure(some, console) == 0
    assert turns == ["plain", "layernorm"]


def test_results_may_be_packed_and_what_is_known_of_other_problems_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored.pack(stored.read(sweep_file(tmp_path)).records, tmp_path / "sweep.jsonl.gz")
    (tmp_path / "sweep.jsonl").unlink()
    (tmp_path / seconds.FILE).write_text(json.dumps({"seconds": {"mnist_sgd": {"plain": 2.0}}}))
    monkeypatch.setattr(seconds, "_time", lambda *_: {"plain": 3.0})
    options = SweepOptions(problems=("wine_sgd",), seconds=True, out=tmp_path)
    assert seconds.measure(options, Console(quiet=True)) == 0
    other, packed = tmp_path / "other", tmp_path / "packed"
    for folder in (other, packed):
        folder.mkdir()
    (other / seconds.FILE).write_text(json.dumps({"seconds": {"mnist_sgd": {"plain": 4.0}}}))
    seconds.pack([tmp_path, other], packed)
    timed = {"mnist_sgd": {"plain": 4.0}, "wine_sgd": {"plain": 3.0}}
    assert seconds.read(packed) == seconds.read(tmp_path, other) == timed
    origins = json.loads((packed / seconds.FILE).read_text())["origins"]
    assert list(origins) == ["wine_sgd"]
    assert {"load", "device", "versions"} <= origins["wine_sgd"].keys()


def test_the_option_times_and_does_not_train(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seconds, "measure", lambda options: 3)
    assert job.run(SweepOptions(seconds=True)) == 3


def test_seconds_to_the_target_are_steps_times_seconds() -> None:
    results = [*BASELINES, *both("neuronwise", 0.5, [1.0, 0.5])]
    others = [each._replace(cell=each.cell._replace(problem="wine_adam")) for each in results]
    costs = {"wine_sgd": {"batchnorm": 2.0, "neuronwise": 3.0, "plain": 1.0}}
    costs["wine_adam"] = {"batchnorm": 2.0, "layernorm": 2.0}
    table = make([*results, *others], costs)[4]
    assert table.title == "fresh: seconds to the target over the best baseline's"
    # Half of the steps, each half as long again; plain never gets there; not all were timed.
    assert table.rows[0][1:] == ["never", "1", "", "0.75"]


def test_damage_is_said(tmp_path: Path) -> None:
    assert seconds.read(tmp_path) == {}
    damaged = {"second": {}}, {"seconds": []}, {"seconds": {"a": {"b": -1}}}, {"seconds": {"a": 1}}
    for content in damaged:
        (tmp_path / seconds.FILE).write_text(json.dumps(content))
        with pytest.raises(DataError, match="damaged"):
            seconds.read(tmp_path)
