"""What becomes of final runs: outcomes, tables and profiles, by hand."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from experiments.evidence.figures import ratios_of
from experiments.evidence.outcomes import outcomes
from experiments.evidence.problems import PROBLEMS
from experiments.evidence.sweep import Cell
from experiments.evidence.tables import make
from experiments.studies.study import Result

INF = math.inf


def results_of(
    method: str,
    finals: Sequence[float],
    curve: list[float | None],
    problem: str = "wine_sgd",
    best: int = -4,
    tests: Sequence[Any] = (0.5,),
) -> list[Result]:
    """The screen of rates -6, -4 and -2, and final runs at the best of them."""
    screen = {index: [1.0 + (index != best)] * 2 for index in (-6, -4, -2)}
    count = len(finals)

    def further(name: str, indices: Sequence[int], values: Sequence[Any]) -> dict[str, Any]:
        return {name: {index: list(values) for index in indices}}

    def result(stage: str, found: dict[int, list[float]], seeds: int) -> Result:
        indices = list(found)
        more = {
            **further("validation", indices, [0.25] * seeds),
            **further("validation_figure", indices, [0.75] * seeds),
            **further("test", indices, [tests[n % len(tests)] for n in range(seeds)]),
            **further("curve", indices, [curve] * seeds),
        }
        return Result(Cell(problem, method, stage), found, more)

    return [result("screen", screen, 2), result("final", {best: list(finals)}, count)]


def baselines(problem: str = "wine_sgd", plain: float = 2.0) -> list[Result]:
    """BatchNorm is the best one, at 1, after all of the steps."""
    return [
        *results_of("plain", [plain] * 10, [3.0, plain], problem),
        *results_of("batchnorm", [1.0] * 10, [2.0, 1.0], problem),
        *results_of("layernorm", [4.0] * 10, [4.0, 4.0], problem),
    ]


def test_an_outcome_by_hand() -> None:
    """Rate, figures, steps; the seed that diverged is a miss, wherever it was before that."""
    ours = results_of("neuronwise", [0.5] * 9 + [INF], [0.9, 0.5], tests=[0.7] * 9 + [None])
    (found,) = outcomes([*baselines(), *ours]).values()
    one, steps = found.outcomes["neuronwise"], PROBLEMS["wine_sgd"].steps
    assert one.rate == pytest.approx(0.1)
    assert one.finals == [0.5] * 9 + [INF]
    assert one.validation == [0.25] * 10
    assert one.tests[:9] == [0.7] * 9
    assert math.isnan(one.tests[9])
    assert one.steps == [steps / 2] * 9 + [INF]
    assert found.outcomes["batchnorm"].steps == [steps] * 10


@pytest.mark.parametrize(("best", "at_edge"), [(-6, True), (-4, False), (-2, True)])
def test_the_edge_of_the_grid_is_its_first_and_its_last_rate(best: int, at_edge: bool) -> None:
    ours = results_of("neuronwise", [0.5] * 10, [1.0, 0.5], best=best)
    results = [*baselines(), *ours]
    assert outcomes(results)["wine_sgd"].outcomes["neuronwise"].at_edge == at_edge
    assert make(results)[2].rows[0][-1] == "0.5" + "!" * at_edge


def test_a_problem_waits_for_every_baseline_that_was_screened() -> None:
    """LayerNorm does not fit into a transformer, so it is not waited for."""
    results = [each for each in baselines() if each.cell.method != "layernorm"]
    assert list(outcomes(results)) == ["wine_sgd"]
    late = [each for each in baselines() if each.cell[1:] != ("layernorm", "final")]
    assert outcomes(late) == {}
    assert outcomes(results_of("plain", [INF] * 10, [2.0, None])) == {}


def test_tables_by_hand() -> None:
    """Fresh problems apart from known ones, medians below, p-values adjusted within a group."""
    ours = {"wine_sgd": [0.5] * 10, "wine_adam": [0.5, 2.0] * 5, "digits_adam": [0.25] * 10}
    curves = {"wine_sgd": [1.0, 0.5, 0.5, 0.5], "wine_adam": [1.0, 0.5], "digits_adam": [1.0]}
    tests = [0.5] * 8 + [None]
    results = [
        each
        for problem, finals in ours.items()
        for each in (
            *baselines(problem),
            *results_of("neuronwise", finals, [*curves[problem]], problem, tests=tests),
        )
    ]
    tables = {table.title: table for table in make(results)}
    loss = tables["fresh: final training loss over the best baseline's"]
    assert [row[-1] for row in loss.rows] == ["0.5", "1.25", "0.875"]
    steps = tables["fresh: steps to the target over the best baseline's"]
    assert [row[-1] for row in steps.rows] == ["0.25", "0.5", "0.375"]
    assert [row[1] for row in steps.rows] == ["never", "never", "never"]
    assert tables["fresh: test figure"].rows[0][-1] == "0.5 (1 lost)"
    duel = tables["fresh: neuron-wise against plain and the best baseline"]
    first, second = duel.rows
    assert first[1:4] == ["0.25 (0.25 to 0.25)", "BatchNorm", "0.5 (0.5 to 0.5)"]
    assert first[4:6] == ["0.0039", "0.25 (0.25 to 0.25)"]  # twice 2 / 1024
    assert first[6] == "0.5 (1 lost) / 0.5 / 0.5"
    assert second[3:5] == ["1.25 (0.5 to 2)", "1"]
    known = tables["known: neuron-wise against plain and the best baseline"]
    assert [row[4] for row in known.rows] == ["0.002"]


def test_ratios_are_over_the_fastest_method() -> None:
    """On each problem; where no method gets there, nobody is the fastest."""
    results = [
        *baselines(),
        *results_of("neuronwise", [0.5] * 10, [1.0, 0.5]),
        *baselines("wine_adam"),
        *results_of("neuronwise", [2.0] * 10, [2.0, 2.0], "wine_adam"),
    ]
    assert ratios_of(outcomes(results)) == {
        "plain": [INF, INF],
        "batchnorm": [2.0, 1.0],
        "layernorm": [INF, INF],
        "neuronwise": [1.0, INF],
    }
    (found,) = outcomes(baselines()).values()
    lost = {name: one._replace(steps=[np.inf] * 10) for name, one in found.outcomes.items()}
    assert ratios_of({"wine_sgd": found._replace(outcomes=lost)})["batchnorm"] == [INF]
