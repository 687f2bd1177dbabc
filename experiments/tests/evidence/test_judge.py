"""What runs say, by hand."""

import math

import numpy as np
import pytest

from experiments.evidence.judge import holm, paired_ratio, profile, sign_flip, steps_to, target_of

INF = math.inf


def test_steps_are_the_end_of_the_first_part_below() -> None:
    assert steps_to([4.0, 2.0, 1.0, 3.0], 200, 2.0) == 100
    assert steps_to([4.0, 2.0, 1.0, 3.0], 200, 0.5) == INF
    assert steps_to([4.0, math.nan, INF, INF], 200, 2.0) == INF


def test_the_target_is_the_median_of_the_best_baseline() -> None:
    assert target_of({"a": [3.0, 1.0, 2.0], "b": [1.0, 1.5, INF]}) == ("b", 1.5)
    with pytest.raises(ValueError, match="expected a finite one"):
        target_of({"a": [INF, INF]})
    with pytest.raises(ValueError, match="expected a finite one"):
        target_of({})


def test_ratios_are_paired_by_seed() -> None:
    """Twice as much on every seed is twice, however the seeds differ."""
    theirs = np.geomspace(1, 1000, 10)
    assert paired_ratio(2 * theirs, theirs) == pytest.approx((2, 2, 2))
    middle, low, high = paired_ratio(theirs, np.full(10, 10.0))
    assert low < middle < high
    # Of two, a quarter of the resamples is twice the first, and a quarter twice the second.
    assert paired_ratio([1.0, 100.0], [1.0, 1.0]) == pytest.approx((50.5, 1, 100))
    assert paired_ratio([INF, 1.0], [1.0, INF])[0] == INF  # a miss against a hit, and the other way
    assert paired_ratio([INF] * 3, [INF] * 3) == (1, 1, 1)
    assert paired_ratio([0.0, 0.0, 1.0], [0.0, 1.0, 0.0])[0] == 1
    with pytest.raises(ValueError, match="expected as many as theirs"):
        paired_ratio([1.0], [1.0, 2.0])


def test_the_interval_covers_the_median_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for seed in range(60):
        ours = np.exp(rng.normal(size=10))
        _, low, high = paired_ratio(ours, np.ones(10), seed=seed)
        inside += low <= 1.0 <= high
    assert 52 <= inside < 60


def test_p_values_by_hand() -> None:
    assert sign_flip([2.0] * 10, [1.0] * 10) == pytest.approx(2 / 1024)
    assert sign_flip([2.0, 0.5] * 5, [1.0] * 10) == pytest.approx(1)
    assert sign_flip([INF] * 10, [1.0] * 10) == pytest.approx(2 / 1024)
    assert sign_flip([0.0] * 10, [1.0] * 10) == pytest.approx(2 / 1024)
    assert sign_flip([0.0] * 10, [0.0] * 10) == pytest.approx(1)


def test_holm_by_hand() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06}
    )
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1, "b": 1}


def test_profiles_by_hand() -> None:
    found = profile({"a": [1.0, 3.0, INF], "b": [2.0, 1.0, 1.0]}, [1, 2, 4])
    assert found == {"a": [1 / 3, 1 / 3, 2 / 3], "b": [2 / 3, 1.0, 1.0]}
