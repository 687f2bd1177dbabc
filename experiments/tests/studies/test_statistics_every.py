"""The study of schedules: which steps, what is trained together, and what the tables say."""

import math
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

import jaxnorm
from experiments.studies.options import ScheduleName, StatisticsEveryOptions
from experiments.studies.schedules import SCHEDULES
from experiments.studies.statistics_every import (
    FAMILIES,
    PROBLEMS,
    Cell,
    StatisticsEvery,
    rates,
    safe_index,
    verdict,
)
from experiments.training.trainer import Runs

INF = math.inf


def test_schedules_by_hand() -> None:
    """Every step up to 20, every 2nd up to 30, every 3rd up to 40, ...: a tenth of those made."""
    taken = np.flatnonzero(SCHEDULES["default"].mask(1000))
    assert taken[:30].tolist() == [*range(20), *range(21, 30, 2), 32, 35, 38, 42, 46]
    gaps = np.diff(taken)
    np.testing.assert_array_equal(gaps, np.clip(taken[1:] // 10, 1, 16))
    far = np.flatnonzero(SCHEDULES["at_most_64"].mask(1000))
    assert np.diff(far).max() == 64
    assert SCHEDULES["every_step"].mask(50).all()
    start = np.flatnonzero(SCHEDULES["no_dense_start"].mask(40))
    assert start.tolist() == [0, 16, 32]
    for part in (4, 16):
        cost = SCHEDULES[f"rows_{part}"].cost(1000)
        assert cost == pytest.approx(SCHEDULES["default"].cost(1000) / part)


def test_names_agree() -> None:
    """The command line and the list know the same schedules; the default is the rule's."""
    assert get_args(ScheduleName) == tuple(SCHEDULES)
    default = jaxnorm.Rule()
    of = SCHEDULES["default"]
    assert (of.most, of.smoothing) == (default.interval, default.smoothing)
    assert (of.dense, of.part, default.statistics_rows) == (True, 1, None)
    assert SCHEDULES["every_step"][1:3] == (1, 0.0)
    drawn = {name for names, _ in FAMILIES.values() for name in names}
    assert drawn == set(SCHEDULES)


def test_safe_rates() -> None:
    """From the best one up to the first that is a fifth above the best loss of every step."""
    fresh = {0: [1.0], 1: [0.8], 2: [0.7], 3: [0.8], 4: [INF]}
    assert safe_index(fresh, fresh) == 3
    assert safe_index({0: [9.0], 1: [0.8], 2: [0.7], 3: [0.85], 4: [0.7]}, fresh) == 2
    assert safe_index({0: [0.9], 1: [INF], 2: [INF], 3: [INF], 4: [0.9]}, fresh) is None
    assert safe_index({0: [0.8], 1: [INF], 2: [0.9], 3: [0.9], 4: [0.9]}, fresh) == 0
    assert safe_index({0: [INF], 1: [INF]}, fresh) is None


def test_verdict_by_hand() -> None:
    """Seeds are paired; each schedule has its own best rate; one seed that diverges is enough."""
    every = {0: [1.0, 2.0], 1: [3.0, 3.0]}
    found = verdict({0: [INF, 0.1], 1: [1.1, 2.0]}, every)
    assert (found.ratio, found.error) == (pytest.approx(1.05), pytest.approx(0.05))
    assert found.as_good  # by one standard error
    assert verdict({0: [1.009, 2.018], 1: [9.0, 9.0]}, every).as_good  # by 1 %
    assert not verdict({0: [1.03, 2.05], 1: [9.0, 9.0]}, every).as_good
    assert verdict({0: [0.5, 1.0], 1: [9.0, 9.0]}, every).as_good
    assert verdict(every, every) == (1, 0, 0)
    assert not verdict({0: [INF, 1.0], 1: [INF, INF]}, every).as_good
    assert verdict({0: [1.005]}, {0: [1.0]}).as_good
    none, low, high = (found._replace(safe=index) for index in (None, 0, 1))
    assert high.is_as_safe_as(low)
    assert low.is_as_safe_as(low)
    assert low.is_as_safe_as(none)
    assert not low.is_as_safe_as(high)
    assert not none.is_as_safe_as(low)


@pytest.mark.parametrize(
    ("parallel", "together"), [(0, [2, 6, 1, 1, 1, 1]), (5, [2, 5, 1, 1, 1, 1, 1])]
)
def test_schedules_of_the_same_rule_are_trained_at_once(
    parallel: int, together: list[int], tmp_path: Path
) -> None:
    """Each cell has the losses of its mask and rates, whichever were trained beside it."""
    some = {"problems": ("photo_sgd",), "parallel_schedules": parallel}
    options = StatisticsEveryOptions(**some, steps=100, seeds=2, out=tmp_path)
    study, calls = StatisticsEvery(options), []

    def trainer(group, make):
        def train(knobs):
            calls.append((group[1], len(knobs.rate) / len(rates("photo_sgd"))))
            finals = np.asarray(knobs.rate) + 1000 * np.asarray(knobs.taken).sum(axis=1)
            finals = finals + 1e6 * group[1].smoothing
            losses = np.stack([np.full_like(finals, 1e12)] + 7 * [finals], axis=-1)
            losses = np.stack([losses, losses + 0.5], axis=1)  # the seeds
            return Runs(losses, None, None, 0.0, 0.0)

        return train

    study.trainer = trainer  # type: ignore[method-assign]
    cells = study.cells()
    assert len(cells) == len(SCHEDULES)
    for cell in cells:
        study.results[cell] = study.train(cell)
        schedule = SCHEDULES[cell.schedule]
        count = 1000 * schedule.mask(100).sum() + 1e6 * schedule.smoothing
        for index, (one, other) in study.results[cell].finals.items():
            assert one == pytest.approx(count + 10 ** (index / 4))
            assert other == one + 0.5
        assert list(study.results[cell].finals) == list(rates("photo_sgd"))
    assert [count for _, count in calls] == together
    assert [rule.statistics_rows for rule, _ in calls][-4:] == [None, 64, 16, None]
    assert [rule.statistics_dtype for rule, _ in calls][-2:] == [None, "bfloat16"]


def test_rules_of_the_cells() -> None:
    """The masks say when; in a text a row is a character."""
    study = StatisticsEvery(StatisticsEveryOptions())
    for problem, schedule, rows, smoothing in (
        ("photo_sgd", "default", None, 0.5),
        ("photo_sgd", "unsmoothed", None, 0.0),
        ("photo_sgd", "smoothing_8", None, 0.8),
        ("photo_sgd", "rows_4", 64, 0.5),
        ("convnet_sgd", "rows_16", 4, 0.5),
        ("text_adamw", "rows_16", 32, 0.5),
    ):
        rule = study._rule(Cell(problem, schedule))
        assert rule.statistics_rows == rows
        assert rule.smoothing == smoothing
        assert rule.step_size == "plain"
    assert study.steps("photo_sgd") == 2 * PROBLEMS["photo_sgd"].steps
