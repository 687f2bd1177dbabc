"""Records and summaries against hand calculation."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.errors import DataError
from experiments.options import CompareConfig
from experiments.records.fields import ANYTHING, CURVE
from experiments.records.runs import (
    make_records,
    read_records,
    running_mean,
    steps_to_target,
    write_records,
)
from experiments.report.comparison import notes, row, table, warnings, yardstick
from experiments.report.summary import MethodSummary, Statistic, summarize
from experiments.training.trainer import Runs
from experiments.workloads.photo import Photo

INF = math.inf


def test_running_mean_by_hand() -> None:
    """The window ends at the step itself; before it is full there is no mean."""
    means = running_mean(np.array([4.0, 2.0, 0.0, INF, 1.0]), 2)
    np.testing.assert_array_equal(means, [np.nan, 3, 1, INF, INF])
    np.testing.assert_array_equal(running_mean(np.array([4.0, 2.0]), 9), [np.nan, 3])


@pytest.mark.parametrize(
    ("target", "window", "steps"), [(2.5, 1, 2), (2.0, 1, 3), (2.5, 2, 3), (0.4, 1, None)]
)
def test_steps_to_target_by_hand(target: float, window: int, steps: int | None) -> None:
    """The first step below, counted from one; None if there is none."""
    assert steps_to_target(np.array([4.0, 2.0, 1.0, 3.0, 0.5]), target, window) == steps


@pytest.fixture
def records() -> list[dict[str, Any]]:
    """Two rates, two seeds, four steps; at the larger rate one seed diverges."""
    losses = np.array([[[4, 3, 2, 1.0], [4, 3, 2, 2]], [[4, 1, 0.1, 0.1], [4, 9, INF, INF]]])
    test = np.array([[10.0, 20.0], [30.0, math.nan]])
    plan = CompareConfig(
        steps=4, rates=(0.1, 0.2), seeds=2, target_loss=2.1, window=1, tail=0.5
    ).resolved()
    runs = Runs(losses, test, None, seconds=3.0, compile_seconds=1.0)
    return make_records("bnp", "key", Photo(np.zeros((2, 2, 3))), plan, runs, {"git_sha": None})


def test_records_describe_each_run(records: list[dict[str, Any]]) -> None:
    """Rate, seed, figures and curve of each, with null for what is not finite."""
    assert [(r["rate"], r["seed"]) for r in records] == [(0.1, 0), (0.1, 1), (0.2, 0), (0.2, 1)]
    assert [r["final_train_loss"] for r in records] == [1.5, 2.0, 0.1, None]
    assert [r["diverged"] for r in records] == [False, False, False, True]
    assert [r["steps_to_target"] for r in records] == [3, 3, 2, None]
    assert [r["test"] for r in records] == [10, 20, 30, None]
    assert records[0]["final_train_figure"] == pytest.approx(-10 * math.log10(1.5))
    assert records[3]["final_train_figure"] is None
    assert records[3]["curve"] == [4, 9, None, None]
    assert records[0]["seconds_together"] == 3
    assert records[0]["runs_together"] == 4
    assert records[0]["config"]["batch_size"] == 256
    assert not {"out", "data_dir"} & set(records[0]["config"])
    assert "git_sha" in records[0]


def test_records_survive_the_file(records: list[dict[str, Any]], tmp_path: Path) -> None:
    """What is read is what was written, in JSON that any reader takes."""
    path = tmp_path / "runs.jsonl"
    write_records(path, records)
    assert read_records(path, {}) == json.loads(json.dumps(records))
    assert len(path.read_text().splitlines()) == 4
    for word in ("NaN", "Infinity"):
        assert word not in path.read_text()
    with pytest.raises(ValueError, match="JSON"):
        write_records(path, [{"loss": math.nan}])
    assert len(read_records(path, {})) == 4


def test_damaged_records_are_named(records: list[dict[str, Any]], tmp_path: Path) -> None:
    """A line that was cut off is named with its file."""
    path = tmp_path / "runs.jsonl"
    write_records(path, records)
    path.write_text(path.read_text()[:-20])
    with pytest.raises(DataError, match=f"{path}: line 4 is damaged.*remove the file"):
        read_records(path, {})
    path.write_text('{"key": 1}\n')
    with pytest.raises(DataError, match=r"line 1 is damaged.*it has no curve"):
        read_records(path, {"key": ANYTHING, "curve": CURVE})
    path.write_bytes(b"\xff")
    with pytest.raises(DataError, match="cannot be read"):
        read_records(path, {})
    assert read_records(tmp_path / "nothing.jsonl", {}) == []


def test_a_diverged_seed_disqualifies_its_rate(records: list[dict[str, Any]]) -> None:
    """The better seed of the larger rate does not count, though it is the best run of all."""
    (summary,) = summarize(records)
    assert summary.best == 0.1
    assert summary.final == Statistic(1.75, pytest.approx(0.5 / 2**0.5), 1.5, 2.0)
    assert (summary.steps, summary.reached) == (Statistic(3, 0, 3, 3), 2)
    assert summary.test.mean == 15
    assert (list(summary.finals), summary.lost) == ([0.1], (0.2,))


def test_the_test_figure_does_not_choose(records: list[dict[str, Any]]) -> None:
    """However good it is at another rate."""
    for record in records:
        record |= {"final_train_loss": record["rate"], "test": 100 * record["rate"]}
    assert summarize(records)[0].best == 0.1
    for record in records:
        record["test"] = -record["test"]
    assert summarize(records)[0].best == 0.1
    for record in records:
        record["final_train_loss"] = -record["rate"]
    assert summarize(records)[0].best == 0.2


def test_statistic_by_hand() -> None:
    """The divisor is n - 1; one value has no deviation, none has nothing."""
    assert Statistic.of([1.0, 2.0, 3.0]) == Statistic(2, pytest.approx(1), 1, 3)
    assert Statistic.of([5.0]) == Statistic(5, None, 5, 5)
    assert Statistic.of([]) is None


@pytest.mark.parametrize(
    ("finals", "edge", "words"),
    [
        ([3.0, 1.0, 2.0], None, None),
        ([1.0, 2.0, 3.0], "smallest", "smaller one may be better"),
        ([3.0, 2.0, 1.0], "largest", "larger one may be better"),
        ([3.0, 1.0, None], None, None),
        ([None, None, 1.0], "largest", "larger"),
        ([None, None, None], None, "diverged at every rate"),
        ([1.0], "only", "single rate"),
    ],
)
def test_edges_of_the_grid_are_told(
    finals: list[float | None], edge: str | None, words: str | None, records: list[dict[str, Any]]
) -> None:
    """A best rate at the edge gives a warning and a mark in the table; one inside does not."""
    single = [
        records[0] | {"rate": 10.0**index, "final_train_loss": final, "steps_to_target": None}
        for index, final in enumerate(finals)
    ]
    (summary,) = summarize(single)
    assert summary.edge == edge
    texts = warnings([summary])
    assert len(texts) == (words is not None)
    assert words is None or ("BNP" in texts[0] and words in texts[0])
    cells = row(summary, Photo(np.zeros((2, 2, 3))))
    assert ("(edge)" in cells[1]) == (edge in ("smallest", "largest"))


def test_row_of_the_table_by_hand(records: list[dict[str, Any]]) -> None:
    """Mean ± deviation, the number of runs that reached the target, a dash if none."""
    photo = Photo(np.zeros((2, 2, 3)))
    cells = row(summarize(records)[0], photo)
    assert cells == [
        "BNP",
        "0.1 (edge)",
        "3 ± 0",
        "1.75 ± 0.4",
        "-2.39 ± 0.88",
        "15.00 ± 7.07",
        "3.0 (+ 1.0)",
    ]
    records[0]["steps_to_target"] = None
    assert row(summarize(records)[0], photo)[2] == "3 (1/2)"
    records[1]["steps_to_target"] = None
    assert row(summarize(records)[0], photo)[2] == "- (0/2)"


PHOTO = Photo(np.zeros((2, 2, 3)))
PLAN = CompareConfig(steps=4, target_loss=2.1).resolved()


def timed(
    records: list[dict[str, Any]], **methods: tuple[float | None, Any]
) -> list[MethodSummary]:
    """The same runs as those of some methods: seconds of a step, and steps of the second seed."""
    return summarize(
        [
            record
            | {"method": name, "seconds_per_step": seconds}
            # At the better rate the first seed has 3 steps to the target.
            | ({"steps_to_target": steps} if (record["rate"], record["seed"]) == (0.1, 1) else {})
            for name, (seconds, steps) in methods.items()
            for record in records
        ]
    )


def cells(summaries: list[MethodSummary]) -> dict[str, list[str]]:
    """What the columns of seconds hold, by the title of the method."""
    shown = table(summaries, PHOTO, PLAN)
    assert shown.headings[3] == "seconds to loss 2.1"
    return {row[0]: list(row[3:5]) for row in shown.rows} | {"": [shown.headings[4]]}


def test_seconds_by_hand(records: list[dict[str, Any]]) -> None:
    """Steps times the seconds of a step, and over BatchNorm's mean."""
    known = timed(records, plain=(0.5, 4), batchnorm=(0.25, 5), bnp=(None, 3))
    assert known[0].seconds_to_target == Statistic(1.75, pytest.approx(0.5 / 2**0.5), 1.5, 2)
    assert cells(known) == {
        "": ["of BatchNorm's"],
        "plain": ["1.75 ± 0.4", "1.75"],
        "BatchNorm": ["1 ± 0.4", "1.00"],
        "BNP": ["-", "-"],
    }
    assert "Milliseconds of a step: plain 500, BatchNorm 250." in " ".join(notes(PLAN, known))


def test_seconds_without_batchnorm(records: list[dict[str, Any]]) -> None:
    """Where it misses the target with one seed, plain is the unit, and the notes say so."""
    known = timed(records, plain=(0.5, 5), batchnorm=(0.25, None))
    assert cells(known) == {
        "": ["of plain's"],
        "plain": ["2 ± 0.7", "1.00"],
        "BatchNorm": ["0.75", "-"],
    }
    assert "with every seed: the ratio is to plain" in " ".join(notes(PLAN, known))
    assert yardstick(timed(records, plain=(0.5, None), bnp=(0.5, 3))) is None
    known = timed(records, plain=(0.5, None), bnp=(0.5, 3))
    assert cells(known)["BNP"] == ["1.5 ± 0", "-"]
    assert "there is no ratio" in " ".join(notes(PLAN, known))


def test_without_timing_there_is_no_column(records: list[dict[str, Any]]) -> None:
    """Where it was not asked for, and where nothing was timed."""
    plan = CompareConfig(steps=4, target_loss=2.1, timing=False).resolved()
    for known, of in (
        (timed(records, plain=(0.5, 3)), plan),
        (timed(records, plain=(None, 3)), PLAN),
    ):
        shown = table(known, PHOTO, of)
        assert not [heading for heading in shown.headings if heading.startswith("seconds to")]
        assert {len(line) for line in shown.rows} == {len(shown.headings)}
        assert "alone" not in " ".join(notes(of, known))


@pytest.mark.parametrize(
    ("reached", "length", "steps"),
    [
        ((100, 201), 600, 150),
        ((1, None), 600, 50),
        ((500, 500), 600, 300),
        ((9, 9), 20, 20),
        ((None, None), 120, 120),
    ],
)
def test_steps_that_are_timed(
    records: list[dict[str, Any]], reached: tuple[Any, Any], length: int, steps: int
) -> None:
    """As many as lead to the target, neither too few nor too many, nor more than there are."""
    for record in records:
        record |= {"steps_to_target": reached[record["seed"]], "curve": [1.0] * length}
    assert summarize(records)[0].steps_to_time == steps
