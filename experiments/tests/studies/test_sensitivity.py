"""Sensitivity: what varies, and that nothing else does; ratios by hand."""

import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm
from experiments.studies import sensitivity_figures
from experiments.studies.options import SensitiveName, SensitivityOptions, VariedName
from experiments.studies.sensitivity import Cell, Sensitivity
from experiments.studies.sensitivity_tables import make, ratio
from experiments.studies.settings import ENTRIES, PROBLEMS, SHAPES, VARIATIONS, Setting
from experiments.studies.study import Result
from experiments.studies.tasks import TASKS
from experiments.workloads import STUDIED


def test_names_agree() -> None:
    """The command line knows the problems and what varies, in their order."""
    assert get_args(SensitiveName) == tuple(PROBLEMS)
    assert get_args(VariedName) == tuple(VARIATIONS)


def test_a_default_is_the_setting_in_which_nothing_varies() -> None:
    """And every other value changes one field of it."""
    for name, variation in VARIATIONS.items():
        if name != "statistics_every":  # which is None, and 16 without a decay
            assert variation.change(Setting(), variation.default) == Setting()
        for value in set(variation.values) - {variation.default}:
            changed = variation.change(Setting(), value)
            pairs = [
                (getattr(changed, f.name), getattr(Setting(), f.name)) for f in fields(Setting)
            ]
            assert sum(one != other for one, other in pairs) == 1
    setting = Setting(unit=2.0, rule=jaxnorm.Rule(damping=0.5))
    assert setting.content() != replace(setting, rule=jaxnorm.Rule(damping=0.4)).content()


def test_cells() -> None:
    """Knobs of the rule are varied with the rule alone; no cell comes twice."""
    cells = Sensitivity(SensitivityOptions()).cells()
    assert len(set(cells)) == len(cells)
    assert {cell.method for cell in cells if cell.varied == "damping"} == {"neuronwise"}
    assert {cell.method for cell in cells if cell.varied == "unit"} == set(ENTRIES)
    assert not [c for c in cells if c.varied == "width" and c.value == 64]


def test_inputs_get_their_unit_and_their_mean() -> None:
    friedman = STUDIED["friedman"].load()
    same = Setting(unit=10.0, mean=3.0).workload(friedman)
    np.testing.assert_allclose(same.train.inputs.mean(axis=0), 30, rtol=1e-4)
    np.testing.assert_allclose(same.train.inputs.std(axis=0), 10, rtol=1e-4)
    assert same.train.targets is friedman.train.targets
    assert Setting().workload(friedman) is friedman
    wide = Setting(mean=3.0).workload(Setting(unit=4.0).workload(friedman))
    np.testing.assert_allclose(wide.train.inputs.mean(axis=0), 12, rtol=1e-4)


def test_a_setting_is_what_is_trained() -> None:
    """Its rule is that of the neuron-wise method alone; steps follow the batch, rates the step."""
    setting = Setting(rule=jaxnorm.Rule(damping=0.5), schedule="warm-up", batch_size=256)
    assert setting.network("neuronwise", 1).rule == setting.rule
    assert setting.network("bnp", 1).rule == jaxnorm.BNP
    problem = PROBLEMS["friedman_sgd"]
    assert (Setting().steps(problem), setting.steps(problem)) == (300, 150)
    optimizer, gradient = setting.optimizer(problem, 0.3), jnp.ones(())
    update, _ = optimizer.update(gradient, optimizer.init(gradient))
    assert float(jnp.asarray(update)) == pytest.approx(-0.3 / 15)


@pytest.mark.parametrize("method", ENTRIES)
def test_initial_weights_are_scaled(method: str) -> None:
    """Kernels alone; with the factor 1 the network is that of the other studies."""
    x = jnp.ones((2, 4))
    variables = [
        Setting(widths=(8,), scale=scale).network(method, 1).init(jax.random.key(0), x, train=False)
        for scale in (1.0, 3.0)
    ]
    task = replace(TASKS["friedman"], widths=(8,))
    entry = ENTRIES[method]
    whole = task.network(entry.rule, 1, entry.normalizer).init(jax.random.key(0), x, train=False)
    jax.tree.map(np.testing.assert_array_equal, variables[0], whole)
    flat = jax.tree_util.tree_leaves_with_path(variables[0])
    for (path, one), three in zip(flat, jax.tree.leaves(variables[1]), strict=True):
        factor = 3 if "kernel" in jax.tree_util.keystr(path) else 1
        np.testing.assert_array_equal(three, factor * one)


def test_rates_rise_and_fall() -> None:
    """A tenth of the run up, then constant, or down to nothing."""
    found = {
        name: [float(make(40)(step)) for step in (0, 1, 3, 20, 39)] for name, make in SHAPES.items()
    }
    half, last = 0.5, (1 + math.cos(math.pi * 39 / 40)) / 2
    assert found["constant"] == [1] * 5
    assert found["warm-up"] == [0.25, 0.5, 1, 1, 1]
    assert found["cosine"] == pytest.approx([1, 0.99846, 0.98618, half, last], abs=1e-4)
    assert found["warm-up, cosine"] == pytest.approx([0.25, 0.49923, 0.98618, half, last], abs=1e-4)


def _result(varied: str, value: Any, method: str, *losses: float) -> Result:
    return Result(Cell("friedman_sgd", varied, value, method), {-4: list(losses), -2: [9.0, 9.0]})


RESULTS = [
    _result("nothing", "", "plain", 1.0, 3.0),
    _result("nothing", "", "neuronwise", 0.5, 1.5),
    _result("width", 16, "plain", math.inf, 20.0)._replace(finals={-4: [math.inf] * 2}),
    _result("width", 16, "neuronwise", 1.0, 1.0),
    _result("damping", 10, "neuronwise", 2.0, 4.0),
    _result("unit", 100, "plain", 1.0, 1.0),
    _result("unit", 100, "bnp", 1.0, 1.0)._replace(finals={-4: [math.inf] * 2}),
]


def test_ratios_by_hand() -> None:
    """Of the same setting; of a knob, over plain with nothing varied."""
    of = {result.cell[1:]: result for result in RESULTS}
    found = ratio(of, "nothing", "", "neuronwise")
    assert (found.mean, found.rate) == (0.5, 0.1)
    assert found.error == pytest.approx(np.std([-0.5, -1.5], ddof=1) / math.sqrt(2) / 2)
    assert ratio(of, "damping", 10, "neuronwise").mean == 1.5
    assert math.isnan(ratio(of, "width", 16, "neuronwise").mean)
    assert ratio(of, "unit", 100, "bnp").mean == math.inf
    (table,) = make(RESULTS)
    assert [row[0] for row in table.rows] == [
        "as it is",
        "width: 16",
        "damping: 10",
        "unit of the inputs: 100",
    ]
    assert table.rows[0][1:] == ["2 (0.1)", "", "", "0.50 ± 0.25 (0.1)", ""]
    assert table.rows[1][1:] == ["diverges", "", "", "trains, plain does not (0.1)", ""]
    assert table.rows[3][3] == "diverges"


def test_a_point_beyond_the_panel_is_marked() -> None:
    figure = sensitivity_figures.draw(RESULTS)
    drawn = {axes.get_title(): axes for axes in figure.axes if axes.get_title()}
    assert list(drawn) == ["width", "unit of the inputs", "damping"]
    crosses = [line for line in drawn["unit of the inputs"].lines if line.get_marker() == "x"]
    assert [line.get_xydata().tolist() for line in crosses] == [[[4, 5]]]


def test_a_cell_is_searched_from_the_plain_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight steps of it, for real."""
    problem = PROBLEMS["friedman_sgd"]._replace(steps=8)
    monkeypatch.setitem(PROBLEMS, "friedman_sgd", problem)
    study = Sensitivity(SensitivityOptions(problems=("friedman_sgd",), out=tmp_path))
    plain = Cell("friedman_sgd", "schedule", "cosine", "plain")
    study.results[plain] = Result(plain, {-12: [1.0] * 3})
    found = study.train(plain._replace(method="batchnorm"))
    assert min(found.finals) <= -14
    assert all(len(losses) == 3 for losses in found.finals.values())
