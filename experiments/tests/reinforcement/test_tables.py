"""What is said of the runs, on numbers made up."""

import math

import numpy as np

from experiments.reinforcement.study import Cell
from experiments.reinforcement.tables import best_index, found, make
from experiments.reinforcement.tasks import TASKS
from experiments.studies.study import Result

TASK = TASKS["cartpole"]


def result(method: str, stage: str, runs: dict[int, list[tuple[float, list[float | None]]]]):
    """Of each rate and seed the final return (nan: diverged) and the learning curve."""
    returns = {index: [one for one, _ in of] for index, of in runs.items()}
    further = {
        "final_return": {
            i: [None if math.isnan(r) else r for r in of] for i, of in returns.items()
        },
        "divergence": {index: [0.01] * len(of) for index, of in runs.items()},
        "curve": {index: [curve for _, curve in of] for index, of in runs.items()},
    }
    finals = {i: [math.inf if math.isnan(r) else 500 - r for r in of] for i, of in returns.items()}
    return Result(Cell("cartpole", method, stage), finals, further)


SLOW, FAST, LOST = [None, 100.0, 480.0], [None, 480.0, 490.0], [None, 20.0, 20.0]
RESULTS = [
    result("plain", "screen", {-12: [(500, SLOW)], -10: [(497, FAST)], -8: [(450, FAST)]}),
    result("plain", "final", {-10: [(490, FAST), (500, SLOW), (500, SLOW)]}),
    result("batchnorm", "screen", {-12: [(40, LOST)], -10: [(math.nan, FAST)], -8: [(20, LOST)]}),
    result("batchnorm", "final", {-12: [(math.nan, LOST), (30, SLOW), (40, LOST)]}),
]


def test_of_rates_that_end_alike_the_one_that_learns_sooner() -> None:
    """500 and 497 are alike, 450 is not; a diverged seed is out."""
    assert best_index(RESULTS[0], TASK) == -10
    assert best_index(RESULTS[2], TASK) == -12
    diverged = result("plain", "screen", {-12: [(math.nan, SLOW)]})
    assert best_index(diverged, TASK) is None


def test_final_runs_by_hand() -> None:
    """Curves count from the first episode's end on; a target that is missed is infinitely far."""
    every = found(RESULTS, TASKS)["cartpole"]
    plain, other = every["plain"], every["batchnorm"]
    thirds = TASK.frames / 3
    np.testing.assert_allclose(plain.frames, [2 * thirds, 3 * thirds, 3 * thirds])
    np.testing.assert_allclose(plain.overall, [485, 290, 290])
    assert (plain.at_edge, other.at_edge) == (False, True)
    np.testing.assert_array_equal(other.frames, [np.inf, 3 * thirds, np.inf])
    assert other.returns[0] == -np.inf


def test_tables() -> None:
    """Never, diverged and the edge of the grid are said."""
    final, screen = make(RESULTS, TASKS)
    plain, other = final.rows
    assert plain[:5] == ["plain", "0.0032", "500 (490 to 500)", "3 of 3", ""]
    assert other[1:4] == ["0.001!", "30 (diverged to 40)", "0 of 3"]
    assert other[7] == "never"
    assert screen.rows[0] == ["CartPole, plain", "500", "**497**", "450"]
    assert screen.rows[1] == ["CartPole, BatchNorm", "**40**", "diverged", "20"]
