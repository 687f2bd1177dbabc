"""What README.md and RESULTS.md say of the evidence is what the stored runs say."""

import math
from pathlib import Path

import numpy as np
import pytest

from experiments.evidence import stored, tables
from experiments.evidence.outcomes import Found, outcomes
from experiments.evidence.problems import PROBLEMS
from experiments.studies.study import Result

EXPERIMENTS = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def results() -> list[Result]:
    return stored.read(EXPERIMENTS / "figures" / "sweep.jsonl.gz").results


@pytest.fixture(scope="module")
def fresh(results: list[Result]) -> list[Found]:
    found = outcomes(results)
    return [each for name, each in found.items() if PROBLEMS[name].fresh]


def test_tables(results: list[Result]) -> None:
    """Of the methods on fresh data, and of the rule on every problem."""
    text = (EXPERIMENTS / "RESULTS.md").read_text().splitlines()
    made = {table.title: table for table in tables.make(results)}
    for title in (
        "fresh: every method, over the problems of the default rule",
        "fresh: neuron-wise against plain and the best baseline",
        "known: neuron-wise against plain and the best baseline",
    ):
        rows = made[title].markdown().splitlines()
        assert len(rows) > 10
        assert set(rows) <= set(text)


def test_the_sentence_of_the_readme(fresh: list[Found]) -> None:
    plain = [each.loss_ratio("neuronwise", "plain")[0] for each in fresh]
    best = [each.loss_ratio("neuronwise", each.best)[0] for each in fresh]
    steps = [
        float(
            np.median(each.outcomes["neuronwise"].steps) / np.median(each.outcomes[each.best].steps)
        )
        for each in fresh
    ]
    text = " ".join((EXPERIMENTS.parent / "README.md").read_text().split())
    assert f"({len(fresh)} problems, ten seeds" in text
    assert f"it ends at {_short(plain)} of plain's loss in the median" in text
    lower = sum(ratio < 1 for ratio in best)
    assert f"BatchNorm and LayerNorm on {lower}, at {_short(best)} of its loss" in text
    assert f"after {_short(steps)} of its steps" in text
    worse = [ratio for ratio in plain if ratio > 1.01]
    assert (len(worse), sum(map(math.isinf, worse))) == (3, 2)
    assert "above plain on three, two with batches of one sample" in text


def _short(ratios: list[float]) -> str:
    return f"{np.median(ratios):.2f}".removeprefix("0")
