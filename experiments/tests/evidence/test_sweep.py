"""The sweep: which cells there are, what they train, what becomes of the results."""

import json
import math
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from rich.console import Console

from experiments.evidence import problems, sweep
from experiments.evidence.entries import ENTRIES
from experiments.evidence.options import CandidateName, EvidenceName, ReportOptions, SweepOptions
from experiments.evidence.outcomes import outcomes
from experiments.evidence.problems import PROBLEMS, Problem
from experiments.evidence.report import run as run_report
from experiments.evidence.sweep import Cell, Sweep, held_out
from experiments.evidence.tables import make
from experiments.studies.study import Result
from experiments.training.trainer import Knobs, Runs
from experiments.workloads import STUDIED

SMALL = Problem("wine", "sgd", 16, 20, 0.03, 0.1, fresh=True)


def test_names_agree() -> None:
    assert get_args(EvidenceName) == tuple(PROBLEMS)
    assert get_args(CandidateName) == tuple(ENTRIES)


def test_validation_samples_are_not_learned_from() -> None:
    wine = STUDIED["wine"].load()
    learned, kept_out = held_out(wine)
    assert len(learned.train) + len(kept_out) == len(wine.train)
    rows = {row.tobytes() for row in learned.train.inputs}
    assert not any(row.tobytes() in rows for row in kept_out.inputs)
    assert learned.test is wine.test


def test_no_second_normalizer_and_no_muon_beside_sgd() -> None:
    cells = Sweep(SweepOptions(problems=("text_adamw", "wine_sgd"))).cells()
    assert Cell("text_adamw", "batchnorm", "screen") not in cells
    assert Cell("text_adamw", "muon", "final") in cells
    assert Cell("wine_sgd", "muon", "final") not in cells
    assert cells.index(Cell("wine_sgd", "plain", "screen")) + 1 == cells.index(
        Cell("wine_sgd", "plain", "final")
    )


def _run(folder: Path, methods: tuple[Any, ...]) -> tuple[int, list[dict[str, Any]]]:
    options = SweepOptions(problems=("wine_sgd",), methods=methods, out=folder)
    status = Sweep(options).run(Console(quiet=True))
    lines = (folder / "sweep.jsonl").read_text().splitlines()
    return status, [json.loads(line) for line in lines]


def test_the_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other seeds in the final runs, the test figure only there; what is known is not run again."""
    monkeypatch.setitem(problems.PROBLEMS, "wine_sgd", SMALL)
    status, records = _run(tmp_path, ("layernorm", "batchnorm"))
    assert status == 0
    screen = [r for r in records if r["stage"] == "screen" and r["method"] == "plain"]
    final = [r for r in records if r["stage"] == "final" and r["method"] == "plain"]
    assert len(screen) == 2 * len(SMALL.rates)
    assert len(final) == sweep.FINAL
    assert all(r["test"] is None for r in screen)
    assert all(0 <= r["test"] <= 1 for r in final)
    by_rate: dict[int, list[float]] = {}
    for record in screen:
        by_rate.setdefault(record["rate_index"], []).append(record["final_train_loss"])
    assert {r["rate_index"] for r in final} == {min(by_rate, key=lambda i: np.mean(by_rate[i]))}
    assert {len(r["curve"]) for r in final} == {20}
    assert (tmp_path / "sweep.png").stat().st_size > 0
    assert "| wine, 2 x 32; SGD, batch 16 |" in (tmp_path / "sweep.md").read_text()

    monkeypatch.setattr(Sweep, "train", lambda *_: pytest.fail("trained again"))
    assert _run(tmp_path, ("layernorm", "batchnorm")) == (0, records)


def test_what_diverges_is_recorded_and_the_sweep_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One method that is never finite, then a problem on which none is: a report of both."""
    lost = {"batchnorm"}

    def make(self: Sweep, cell: Cell) -> Any:
        def train(knobs: Knobs) -> Runs:
            shape = len(knobs.rate), sweep.FINAL if cell.stage == "final" else sweep.SCREENED
            losses = np.full((*shape, 50), 1.0)
            losses[..., 1:] = np.nan if {cell.method, cell.problem} & lost else 0.5
            return Runs(losses, np.full((*shape, 3), losses[0, 0, -1]), None, 0.0, 0.0)

        return train

    monkeypatch.setattr(Sweep, "_make", make)
    options = SweepOptions(
        problems=("wine_sgd",), methods=("batchnorm", "layernorm", "neuronwise"), out=tmp_path
    )
    for lost in ({"batchnorm"}, {"wine_sgd"}):
        file = tmp_path / "sweep.jsonl"
        file.unlink(missing_ok=True)
        assert Sweep(options).run(Console(quiet=True)) == 0
        records = [json.loads(line) for line in file.read_text().splitlines()]
        gone = [r for r in records if r["method"] == "batchnorm" and r["stage"] == "final"]
        assert [r["final_train_loss"] for r in gone] == [None] * sweep.FINAL
        assert gone[0]["validation"] is gone[0]["test"] is None
        assert {r["method"] for r in records} == {"plain", "batchnorm", "layernorm", "neuronwise"}
        text = (tmp_path / "sweep.md").read_text()
        if "wine_sgd" in lost:
            assert "wine" not in text
            report = ReportOptions(results=(file,), out=tmp_path / "report")
            assert run_report(report, Console(quiet=True)) == 0
            text = (tmp_path / "report" / "report.md").read_text()
            assert f"0 of {len(PROBLEMS)} problems have their baselines and are judged" in text
            assert "**Fresh problems**: nothing is known yet." in text
        else:
            rows = [line for line in text.splitlines() if line.startswith("| wine, 2 x 32; SGD")]
            assert "| 1! | never | 1! | 1! |" in rows[1]
            assert "diverges" in rows[3]


def _result(method: str, stage: str, finals: dict[int, list[float]], curve: Any) -> Result:
    each = {index: [1.0] * len(losses) for index, losses in finals.items()}
    curves = {index: [curve] * len(losses) for index, losses in finals.items()}
    further = {"validation": each, "validation_figure": each, "test": each, "curve": curves}
    return Result(Cell("wine_sgd", method, stage), finals, further)


def both(method: str, final: float, curve: list[float | None]) -> list[Result]:
    """The screen and ten final runs that are all alike."""
    screen = {-6: [2.0, 2.0], -4: [1.0, 1.0], -2: [math.inf, 1.0]}
    return [
        _result(method, "screen", screen, curve),
        _result(method, "final", {-4: [final] * 10}, curve),
    ]


BASELINES = [
    *both("plain", 2.0, [3.0, 2.0]),
    *both("batchnorm", 1.0, [2.0, 1.0]),
    *both("layernorm", 4.0, [4.0, 4.0]),
]


def test_outcomes_by_hand() -> None:
    results = [
        *BASELINES,
        *both("neuronwise", 0.5, [1.0, 0.5]),
        *both("bnp", math.inf, [9.0, None]),
    ]
    (found,) = outcomes(results).values()
    assert (found.best, found.target) == ("batchnorm", 1.0)
    ours, diverged = found.outcomes["neuronwise"], found.outcomes["bnp"]
    assert ours.steps == [PROBLEMS["wine_sgd"].steps / 2] * 10
    assert not ours.at_edge
    assert diverged.steps == [math.inf] * 10
    assert found.steps_ratio("neuronwise", "batchnorm")[0] == 0.5
    assert found.loss_ratio("neuronwise", "plain")[0] == 0.25
    summary, duel, losses, steps, _ = make(results)
    assert summary.rows == [
        ["**neuron-wise**", "1", "1", "0", "0.25", "1", "1", "1", "0.5"],
        ["BatchNorm", "1", "2", "0", "0.5", "1", "0", "1", "1"],
        ["plain", "1", "4", "0", "1", "0", "0", "0", "never"],
        ["LayerNorm", "1", "8", "0", "2", "0", "0", "0", "never"],
        ["BNP, inside", "1", "never", "0", "never", "0", "0", "0", "never"],
    ]
    assert losses.rows[0][1:] == ["2", "1", "4", "never", "0.5"]
    assert steps.rows[0][1:] == ["never", "1", "never", "never", "0.5"]
    assert duel.rows[0][4] == "0.002"


def test_a_method_of_fewer_problems_is_compared_with_the_default_on_those() -> None:
    """Muon is a tenth of plain on the easy problem and behind the default, which has both."""
    results = [
        *BASELINES,
        *both("neuronwise", 1.8, [2.0, 1.8]),
        *(
            result._replace(cell=result.cell._replace(problem="wine_adam"))
            for result in (
                *BASELINES,
                *both("neuronwise", 0.1, [1.0, 0.1]),
                *both("muon", 0.2, [1.0, 0.2]),
            )
        ),
    ]
    rows = {row[0]: row[1:5] for row in make(results)[0].rows}
    assert rows["Muon"] == ["1", "2", "0", "0.1"]
    assert rows["**neuron-wise**"] == ["2", "1", "0", "0.475"]
    assert list(rows).index("**neuron-wise**") < list(rows).index("Muon")


def test_other_methods_have_tables_of_their_kind_beside_the_default() -> None:
    others = [*both("metric", 4.0, [4.0, 4.0]), *both("neuronwise", 0.5, [1.0, 0.5])]
    _, _, losses, further, *_ = make([*BASELINES, *others])
    assert losses.headings[1:] == ("plain", "BatchNorm", "LayerNorm", "neuron-wise")
    assert further.title == f"{losses.title}, further methods"
    assert further.headings[1:] == ("quasi-diagonal metric", "neuron-wise")
    assert further.rows[0][1:] == ["4", "0.5"]


def test_without_its_baselines_a_problem_waits() -> None:
    assert (
        outcomes([each for each in BASELINES if each.cell != ("wine_sgd", "layernorm", "final")])
        == {}
    )
    assert make([]) == []
