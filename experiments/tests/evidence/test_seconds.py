"""The seconds of a step: what is timed, what is left out, what the tables make of it."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from experiments.errors import DataError
from experiments.evidence import job, problems, seconds
from experiments.evidence.problems import Problem
from experiments.evidence.tables import make
from experiments.options import SweepOptions
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


def test_the_option_times_and_does_not_train(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seconds, "measure", lambda options: 3)
    assert job.run(SweepOptions(seconds=True)) == 3


def test_seconds_to_the_target_are_steps_times_seconds() -> None:
    results = [*BASELINES, *both("neuronwise", 0.5, [1.0, 0.5])]
    costs = {"wine_sgd": {"batchnorm": 2.0, "neuronwise": 3.0, "plain": 1.0}}
    table = make(results, costs)[2]
    assert table.title == "fresh: seconds to the target over the best baseline's"
    # Half of the steps, each half as long again; plain never gets there; LayerNorm was not timed.
    assert table.rows[0][1:] == ["never", "1", "", "0.75"]


def test_damage_is_said(tmp_path: Path) -> None:
    assert seconds.read(tmp_path) == {}
    (tmp_path / seconds.FILE).write_text(json.dumps({"second": {}}))
    with pytest.raises(DataError, match="damaged"):
        seconds.read(tmp_path)
