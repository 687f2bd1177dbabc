"""What the rule does to the layers, beside what it gains."""

from pathlib import Path

import numpy as np
import pytest

from experiments.errors import DataError
from experiments.evidence import report, why
from experiments.evidence.outcomes import Found, Outcome
from experiments.evidence.why import Point
from experiments.theory.layers import Layer


def _found(ours: float) -> Found:
    outcomes = {
        name: Outcome(0.1, False, [loss] * 10, [], [], [])
        for name, loss in (("plain", 2.0), ("neuronwise", ours))
    }
    return Found("plain", 2.0, outcomes)


def _layers(task: str, *ratios: float) -> list[Layer]:
    return [
        Layer(task, step, "", 3, {"plain": 4.0, "neuronwise": 4 * (ratio if step else 9)})
        for ratio in ratios
        for step in (0, 100)
    ]


def test_points_are_of_the_last_step_and_of_what_both_know() -> None:
    layers = [*_layers("wine", 0.1, 0.4), *_layers("mnist", 0.1)]
    found = {"wine_sgd": _found(1.0), "mnist_adam": _found(0.5), "cancer_sgd": _found(0.1)}
    one, other = why.points(found, layers)
    assert (one.problem, other.problem) == ("mnist_adam", "wine_sgd")
    np.testing.assert_allclose([*one[1:], *other[1:]], [0.1, 0.25, 0.2, 0.5])
    rows = why.table([one, other]).rows
    assert [row[1:] for row in rows] == [["0.10", "0.25"], ["0.20", "0.5"]]
    assert len(why.draw([one, other]).axes[0].texts) == 2


def test_the_correlation_is_of_ranks_and_leaves_out_what_has_no_digits() -> None:
    some = [Point("", 0.1, 0.2), Point("", 0.2, 0.3), Point("", 0.9, 0.95)]
    assert why.correlation(some) == pytest.approx(1)
    assert why.correlation([*some, Point("", 0.05, 1e-9)]) == pytest.approx(1)
    assert why.correlation([some[0]._replace(loss=0.96), *some[1:]]) == pytest.approx(-0.5)
    assert np.isnan(why.correlation(some[:2]))
    tied = [Point("", 1, 0.1), Point("", 1, 0.2), Point("", 2, 0.3), Point("", 2, 0.4)]
    assert why.correlation(tied) == why.correlation(tied[::-1]) == pytest.approx(4 / 20**0.5)


def test_what_lies_in_the_repository_is_whole(tmp_path: Path) -> None:
    layers = why.read(report.FIGURES / "theory_layers.json")
    assert {each.step for each in layers} == {0, 100}
    assert all(each.ratios["plain"] >= 1 for each in layers)
    (tmp_path / "damaged").write_text("[{}]")
    with pytest.raises(DataError, match="theory --layers"):
        why.read(tmp_path / "damaged")
