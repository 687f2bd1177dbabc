"""Parts: which layers take which step, networks that compute the same, ratios by hand."""

import itertools
import math
from functools import partial
from pathlib import Path
from typing import Any, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxnorm
from experiments.studies import parts_figures
from experiments.studies.changed import Change, network
from experiments.studies.options import PartedName, PartsOptions
from experiments.studies.partly import InTurn, partly
from experiments.studies.parts import Cell, Parts, sizes_of_inputs
from experiments.studies.parts_problems import FORMS, PROBLEMS, Problem, rule_of
from experiments.studies.parts_tables import gain, make
from experiments.studies.study import Result
from experiments.studies.tasks import TASKS
from experiments.training.method import make_optimizer
from experiments.training.trainer import Knobs, Trainer
from experiments.workloads import STUDIED


def test_names_agree() -> None:
    """The command line knows the problems, in their order; every layer has a kind."""
    assert get_args(PartedName) == tuple(PROBLEMS)
    for problem in PROBLEMS.values():
        task = TASKS[problem.task]
        x = np.zeros((2, 32), np.int32 if "text" in problem.task else np.float32)
        if problem.task in ("convnet", "cifar"):
            x = np.zeros((2, task.image[0] ** 2 * task.image[1]), np.float32)
        params = jax.eval_shape(
            partial(task.network(None, 10).init, train=False), jax.random.key(0), x
        )["params"]
        layers = {name for name in params if name.startswith(("Dense", "Conv"))}
        assert set(problem.layers) == layers


def test_cells() -> None:
    """None twice; what shares a program stands together; quick ones are few."""
    cells = Parts(PartsOptions()).cells()
    assert len(set(cells)) == len(cells)
    groups = [cell[:3] for cell in cells]
    changes = sum(one != other for one, other in itertools.pairwise(groups))
    assert changes == len(set(groups)) - 1
    quick = Parts(PartsOptions(quick=True, problems=("cifar_sgd",))).cells()
    assert [cell.layers for cell in quick] == [
        "none",
        "all",
        "first convolution",
        "all but first convolution",
    ]


def test_what_is_under_the_rule() -> None:
    """All layers of a kind, or of the other kinds."""
    study, kinds = Parts(PartsOptions()), ["first convolution", "second convolution", "logits"]
    for layers, shares in (
        ("none", [0, 0, 0]),
        ("all", [1, 1, 1]),
        ("logits", [0, 0, 1]),
        ("all but logits", [1, 1, 0]),
    ):
        content = study.content(Cell("convnet_sgd", "", "", layers))
        assert content["shares"] == dict(zip(kinds, shares, strict=True))


def test_forms_differ_from_the_default() -> None:
    """In one thing each, but for BNP."""
    assert rule_of("") == jaxnorm.NEURONWISE
    assert rule_of("bnp") == jaxnorm.BNP
    assert len({rule_of(form) for form in FORMS}) == len(FORMS)


TINY = Problem("small", "adam", 16, 4, 0.01, {"Dense_0": "first", "Dense_1": "logits"})


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    task = TASKS["small_photo"]
    monkeypatch.setitem(TASKS, "small", type(task)("small", "photo", widths=(4,)))
    monkeypatch.setitem(PROBLEMS, "small", TINY)


@pytest.mark.usefixtures("small")
def test_layers_take_one_step_or_the_other() -> None:
    """By the numbers behind the rate: that of the plain optimizer, or that of the coordinates."""
    workload = STUDIED["photo"].load()
    model = TASKS["small"].network(jaxnorm.NEURONWISE, workload.outputs)
    sizes = 1, 4, 16
    make = partial(make_optimizer, "adam", 0.9)
    whole = Trainer(model, workload, make, *sizes)(Knobs([0.01]))
    plain = Trainer(model, workload, make, *sizes, inside=False)
    plain.optimizer = lambda rate: _without_statistics(make(rate))
    plain = plain(Knobs([0.01]))
    trainer = InTurn(model, workload, partly("adam", {"Dense_0": 0, "Dense_1": 1}), *sizes)
    trainer.inside = False
    runs = trainer(Knobs([[0.01, a, b] for a in (0, 1) for b in (0, 1)]))
    np.testing.assert_allclose(runs.losses[0], plain.losses[0], rtol=1e-5)
    np.testing.assert_allclose(runs.losses[3], whole.losses[0], rtol=1e-5)
    assert len(np.unique(runs.losses[:, 0, 3])) == 4  # all four end elsewhere


def _without_statistics(optimizer: Any) -> optax.GradientTransformation:
    def update(updates: Any, state: Any, params: Any = None, **statistics: Any) -> Any:
        del statistics
        return optimizer.update(updates, state, params)

    return optax.GradientTransformationExtraArgs(optimizer.init, update)


@pytest.mark.parametrize("name", ["text", "bare_text"])
def test_a_unit_changes_no_output(name: str) -> None:
    """But the sizes of all inputs of linear layers."""
    tokens = jnp.arange(24).reshape(2, 12) % 7
    outputs, sizes = [], []
    for change in (None, Change(unit=4.0)):
        model = network(TASKS[name], jaxnorm.NEURONWISE, 7, change)
        params = model.init(jax.random.key(0), tokens, train=False)["params"]
        outputs.append(model.apply({"params": params}, tokens, train=False))
        sizes.append(np.array(sizes_of_inputs(model, params, np.asarray(tokens))))
    np.testing.assert_allclose(*outputs, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(4 * sizes[0], sizes[1], rtol=1e-4, atol=1e-6)


def test_a_second_bias_of_queries_moves_them_farther() -> None:
    """At first it is 0 and the network the same; its gradient is that of the bias, times 10."""
    tokens = jnp.arange(24).reshape(2, 12) % 7
    outputs, gradients = [], []
    for change in (None, Change(query_bias=10.0)):
        model = network(TASKS["bare_text"], jaxnorm.PLAIN, 7, change)
        variables = model.init(jax.random.key(0), tokens, train=False)
        outputs.append(model.apply(variables, tokens, train=False))
        gradients.append(jax.grad(partial(_loss, model))(variables, tokens)["params"])
    np.testing.assert_array_equal(*outputs)
    for layer in ("Dense_1", "Dense_7"):  # the first layers of the blocks behind the output's
        whole = gradients[0][layer]["bias"]
        np.testing.assert_allclose(gradients[1][f"bias_{layer}"], 10 * whole, rtol=1e-4)
        assert np.abs(whole).max() > 0


def _loss(model: Any, variables: Any, tokens: jax.Array) -> jax.Array:
    return model.apply(variables, tokens, train=False)[..., 0].var()


def test_means_are_taken_out() -> None:
    """Of the inputs of all layers behind a LayerNorm, and of no others."""
    tokens = jnp.arange(24).reshape(2, 12) % 7
    model = network(TASKS["text"], jaxnorm.NEURONWISE, 7, Change(centered=True))
    params = model.init(jax.random.key(0), tokens, train=False)["params"]
    means = np.array(sizes_of_inputs(model, params, np.asarray(tokens)))[:, 0]
    assert (means < 1e-5).sum() == 9  # of two blocks and the logits; there are 13 layers


def test_sizes_of_inputs_by_hand() -> None:
    """Two channels, of means 3 and 4, of deviations 0 and 1."""
    model = nn.Dense(1)
    x = np.array([[3.0, 3.0], [3.0, 5.0]])
    apply = type("Model", (), {"apply": lambda _, v, x, train: model.apply(v, x)})()
    params = model.init(jax.random.key(0), x)["params"]
    assert sizes_of_inputs(apply, params, x) == [[5.0, 1.0]]


def _result(layers: str, *losses: float, network: str = "", curve: Any = None) -> Result:
    curve = curve or [[4.0, 3.0, 2.0, 1.0]] * len(losses)
    further = {"curve": {-4: curve}, "inputs": {-4: [[[2.0, 1.0], [8.0, 1.0]]] * len(losses)}}
    return Result(Cell("small", network, "", layers), {-4: list(losses)}, further)


RESULTS = [
    _result("none", 1.0, 3.0),
    _result("all", 0.5, 1.5, curve=[[2.0, 2.0, 1.0, 1.0]] * 2),
    _result("all but first", 3.0, 3.0, curve=[[9.0] * 4] * 2),
    _result("logits", math.inf, 1.0),
]


@pytest.mark.usefixtures("small")
def test_ratios_by_hand() -> None:
    """Half the loss, in three quarters of the steps; one that never gets there, one diverged."""
    found = gain(RESULTS[1], RESULTS[0])
    assert (found.loss, found.steps) == (0.5, 0.75)
    assert found.error == pytest.approx(np.std([-0.5, -1.5], ddof=1) / math.sqrt(2) / 2)
    first, last = make(RESULTS)
    assert first.rows == [
        ["plain", "2 (0.1)", ""],
        ["all layers", "0.500 ± 0.250 (0.1)", "0.75"],
        ["all but first", "1.500 ± 0.500 (0.1)", "never"],
        ["only logits", "diverges", ""],
    ]
    row = ["small, Adam", "2 (0.1)", "0.500 ± 0.250 (0.1)", "0.75", "4.00", "1.00"]
    assert last.rows == [row]


@pytest.mark.usefixtures("small")
def test_what_diverges_is_not_drawn() -> None:
    axes, empty = parts_figures.draw(RESULTS).axes
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert labels == ["all layers", "all but first", "only logits"]
    assert (len(axes.containers), empty.axison) == (2, False)


@pytest.mark.usefixtures("small")
def test_networks_have_a_panel_where_they_differ() -> None:
    changed = [_result(layers, 1.0, network="large") for layers in ("none", "all")]
    first, second = parts_figures.draw([*RESULTS, *changed]).axes
    assert len(first.get_yticklabels()) == 3
    labels = [text.get_text() for text in second.get_yticklabels()]
    assert labels == ["small, Adam", "small, Adam:\ninputs times 5, kernels over 5"]


@pytest.mark.usefixtures("small")
def test_a_cell_is_trained(tmp_path: Path) -> None:
    """Four steps of it, for real: every rate has a loss, a curve and inputs for each seed."""
    study = Parts(PartsOptions(seeds=2, out=tmp_path))
    found = study.train(Cell("small", "", "", "logits"))
    for of in (found.finals, found.further["curve"], found.further["inputs"]):
        assert set(of) == set(found.finals)
        assert all(len(runs) == 2 for runs in of.values())
