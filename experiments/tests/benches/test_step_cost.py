"""The timing job: what it divides by, and that it runs. No test asserts seconds."""

import time

import pytest
from rich.console import Console

from experiments.benches import step_cost
from experiments.options import StepCostOptions


def test_ratios_are_to_the_plain_step_of_the_same_turn():
    steps = {"plain": lambda: time.sleep(0.002), "slow": lambda: time.sleep(0.02)}
    found = step_cost.ratios(steps, repeats=3)
    assert found["plain"] == 1
    assert found["slow"] > 2


def test_job_prints_a_row_for_each_shape(monkeypatch):
    shapes = (step_cost.Shape(8, 4, 2), step_cost.Shape(6, 4, 4, space=5))
    monkeypatch.setattr(step_cost, "SHAPES", shapes)
    console = Console(record=True, width=160)
    assert step_cost.run(StepCostOptions(repeats=2), console) == 0
    text = console.export_text()
    for words in ("dense 8 x 4", "conv 6 x 5 x 5 x 4", "(R=2)", "(R=4)"):
        assert words in text
    for words in step_cost.networks(shapes[0]):
        assert words in text
    assert "left 0:00:00" in text


def test_interruption_leaves_what_was_timed(monkeypatch):
    """The table has the shapes before it; the status is that of an interruption."""
    shapes, timed = (step_cost.Shape(8, 4, 2), step_cost.Shape(6, 4, 4)), []

    def ratios(steps, repeats, after_turn):
        timed.append(repeats)
        if len(timed) == 2:
            raise KeyboardInterrupt
        return dict.fromkeys(steps, 1.0)

    monkeypatch.setattr(step_cost, "SHAPES", shapes)
    monkeypatch.setattr(step_cost, "train_step", lambda network, shape: None)
    monkeypatch.setattr(step_cost, "ratios", ratios)
    console = Console(record=True, width=160)
    assert step_cost.run(StepCostOptions(repeats=2), console) == 130
    text = console.export_text()
    assert "Stopped after 1 of 2 shapes" in text
    assert "dense 8 x 4" in text
    assert "dense 6 x 4" not in text


@pytest.mark.parametrize("name", ["neuron-wise", "statistics_rows", "BNP"])
def test_rules_are_what_the_column_says(name):
    rule = step_cost.networks(step_cost.Shape(8, 4, 2))[name].rule
    assert rule is not None
    assert (rule.weighting == "uniform") == (name == "BNP")
    assert (rule.statistics_rows == 2) == (name == "statistics_rows")
