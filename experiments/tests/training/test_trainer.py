"""Training: reproducible, the same start for all methods, and what a plain loop would do."""

import functools
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import optax
import pytest

import jaxnorm
from experiments.methods import METHODS
from experiments.networks.mlp import MLP
from experiments.options import CompareConfig
from experiments.training import method as training
from experiments.training.method import Alone, time_steps, train_method
from experiments.training.timing import BUDGET, LEAST, MOST, median_seconds
from experiments.training.trainer import Runs, in_coordinates, initialize, predict, until_divergence
from experiments.workloads.photo import Photo

PLAN = CompareConfig(
    steps=6, rates=(0.01, 0.1), seeds=2, batch_size=16, width=8, depth=1
).resolved()


PHOTO = Photo(np.random.default_rng(0).random((10, 12, 3)))


@pytest.fixture
def photo() -> Photo:
    """A small picture of noise."""
    return PHOTO


def network(method: str, depth: int = PLAN.depth) -> MLP:
    """The small network of a method."""
    return METHODS[method].network(width=PLAN.width, depth=depth, outputs=3)


@functools.cache
def runs_of(method: str) -> Runs:
    """The runs of a method, trained once for all tests."""
    return train_method(network(method), PHOTO, PLAN)


@pytest.fixture
def plain() -> Runs:
    """The runs of the plain network."""
    return runs_of("plain")


@pytest.mark.parametrize("method", sorted(METHODS))
def test_methods_start_from_the_same_weights(method: str, photo: Photo) -> None:
    """One seed gives every method the same kernels and biases, another seed other ones."""
    expected = initialize(network("plain"), 5, photo.train.inputs)["params"]
    params = initialize(network(method), 5, photo.train.inputs)["params"]
    other = initialize(network(method), 6, photo.train.inputs)["params"]
    assert len(expected) == PLAN.depth + 1
    for layer, values in expected.items():
        for name, value in values.items():
            np.testing.assert_array_equal(params[layer][name], value)
        assert (params[layer]["kernel"] != other[layer]["kernel"]).any()


def test_gradient_methods_differ_in_the_step_alone(plain: Runs) -> None:
    """BNP and the neuron-wise rule have the plain network's first loss, and then their own."""
    curves = [plain.losses[1, 0]]
    for method in ("bnp", "neuronwise"):
        curves.append(runs_of(method).losses[1, 0])
        np.testing.assert_array_equal(curves[-1][0], curves[0][0])
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert (curves[first][1:] != curves[second][1:]).all()


@pytest.mark.parametrize("method", ["batchnorm", "layernorm"])
def test_normalizers_stand_before_each_relu(method: str, photo: Photo) -> None:
    """One normalizer for each hidden layer, and a forward pass that is not the plain one."""
    variables = initialize(network(method, depth=2), 0, photo.train.inputs)
    assert {"norm_0", "norm_1"} <= set(variables["params"])
    assert ("batch_stats" in variables) == (method == "batchnorm")
    x = photo.train.inputs[:8]
    outputs, _ = network(method, 2).apply(variables, x, train=True, mutable=["batch_stats"])
    plain = network("plain", 2).apply({"params": _without_norms(variables)}, x, train=True)
    assert not np.allclose(outputs, plain, atol=1e-2)


def _without_norms(variables: dict[str, Any]) -> dict[str, Any]:
    return {name: v for name, v in variables["params"].items() if not name.startswith("norm")}


def test_same_seed_same_run(photo: Photo, plain: Runs) -> None:
    """A second time gives the same numbers to the last bit; another seed does not."""
    again = train_method(network("plain"), photo, PLAN)
    np.testing.assert_array_equal(again.losses, plain.losses)
    np.testing.assert_array_equal(again.scores, plain.scores)
    assert (plain.losses[:, 0] != plain.losses[:, 1]).all()


@pytest.mark.parametrize("method", ["plain", "batchnorm", "neuronwise"])
def test_many_runs_at_once_are_the_single_runs(method: str, photo: Photo) -> None:
    """Mapped over rates and seeds, each run is what a Python loop with Optax gives."""
    runs = runs_of(method)
    model, rate, seed = network(method), PLAN.rates[1], 1
    variables = initialize(model, seed, photo.train.inputs)
    optimizer = optax.sgd(rate, momentum=PLAN.momentum)
    if method == "neuronwise":
        optimizer = jaxnorm.in_neuron_coordinates(optimizer)
    memory = optimizer.init(variables["params"])

    @jax.jit
    def gradient(variables, inputs, targets):
        def objective(params, stats):
            outputs, changed = model.apply(
                variables | {"params": params, "neuron_stats": stats},
                inputs,
                train=True,
                mutable=["batch_stats"],
            )
            return photo.loss(outputs, targets), changed

        by = variables["params"], variables.get("neuron_stats", {})
        return jax.value_and_grad(objective, (0, 1), has_aux=True)(*by)

    losses = []
    for rows in photo.batches(seed, PLAN.steps, PLAN.batch_size):
        (loss, changed), (gradients, stats) = gradient(
            variables, photo.train.inputs[rows], photo.train.targets[rows]
        )
        more = {}
        if method == "neuronwise":
            more["neuron_stats"] = jaxnorm.update_statistics(variables["neuron_stats"], stats)
        params = variables["params"]
        updates, memory = optimizer.update(gradients, memory, params, **more)
        variables = {**changed, **more, "params": optax.apply_updates(params, updates)}
        losses.append(float(loss))
    assert losses[0] != losses[-1]
    np.testing.assert_allclose(runs.losses[1, seed], losses, rtol=1e-4)
    outputs = predict(model, variables, photo.test.inputs)
    expected = photo.test_figure(float(photo.score(outputs, photo.test.targets).mean()))
    assert runs.scores[1, seed] == pytest.approx(expected, rel=1e-4)
    assert runs.scores[0, seed] != pytest.approx(expected, rel=1e-3)


def test_without_momentum_the_stateless_form_is_the_same(photo: Photo) -> None:
    """In the coordinates SGD makes the steps of the preconditioned gradient; momentum does not."""
    every_batch = jaxnorm.Rule(statistics_every=1)  # as the stateless form takes them
    inside, bare = network("neuronwise").clone(rule=every_batch), network("unwrapped")
    assert in_coordinates(inside.rule)
    assert not in_coordinates(bare.rule)
    one, other, third, fourth = (
        train_method(model, photo, replace(PLAN, momentum=momentum, rates=(0.01, 0.3))).losses
        for momentum in (0.0, 0.9)
        for model in (inside, bare)
    )
    np.testing.assert_allclose(one, other, rtol=1e-3)
    np.testing.assert_allclose(third[..., :2], fourth[..., :2], rtol=1e-3)
    assert (np.abs(third[1, :, -1] / fourth[1, :, -1] - 1) > 3e-3).all()


def test_adam_runs_in_the_coordinates(photo: Photo) -> None:
    """It trains there, and differs from Adam on the gradient that is right for SGD."""
    plan = replace(PLAN, optimizer="adam", rates=(1e-3, 1e-2))
    inside, unwrapped, plain = (
        train_method(METHODS[name].network(width=32, depth=1, outputs=3), photo, plan).losses
        for name in ("neuronwise", "unwrapped", "plain")
    )
    for curves in (unwrapped, plain):
        np.testing.assert_array_equal(inside[..., 0], curves[..., 0])
        assert (inside[..., 1:] != curves[..., 1:]).all()
    assert (inside[1, :, -1] < inside[1, :, 0]).all()


def test_parts_give_the_whole(photo: Photo, plain: Runs) -> None:
    """One rate at a time changes memory, not results; the bar gets every step."""
    done: list[int] = []
    parts = train_method(network("plain"), photo, replace(PLAN, parallel_rates=1), done.append)
    np.testing.assert_allclose(parts.losses, plain.losses, rtol=1e-5)
    np.testing.assert_allclose(parts.scores, plain.scores, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_equal(a.shape, b.shape), parts.variables, plain.variables
    )
    assert sum(done) == PLAN.steps * len(PLAN.rates) * PLAN.seeds
    assert len(done) > 2


def test_time_is_taken_apart(plain: Runs) -> None:
    """Compiling takes longer than six small steps, and neither is nothing."""
    assert plain.compile_seconds > plain.seconds > 0


@pytest.mark.parametrize("method", ["batchnorm", "neuronwise"])
def test_what_is_timed_is_the_run(
    method: str, photo: Photo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone it has the losses of the first seed among all runs; the time is over its steps."""
    seen = []

    def median(runs):
        seen.extend(run() for run in runs.values())
        return dict.fromkeys(runs, 3.0)

    monkeypatch.setattr(training, "median_seconds", median)
    run = Alone(network(method), PLAN.rates[1], 4)
    assert time_steps({"a": run}, photo, PLAN) == {"a": 0.75}
    np.testing.assert_allclose(seen[0], runs_of(method).losses[1, 0, :4], rtol=1e-4)


def test_runs_that_are_timed_take_turns() -> None:
    """The median of rounds, as many as the budget allows, with a clock that a run moves on."""
    now, order = [0.0], []

    def taking(name, *seconds):
        left = list(seconds)

        def run():
            order.append(name)
            now[0] += left.pop(0) if len(left) > 1 else left[0]

        return run

    runs = {"a": taking("a", 9.0, 1.0), "b": taking("b", 2.0, 4.0, 3.0)}
    assert median_seconds(runs, lambda: now[0]) == {"a": 1, "b": 3}
    assert order == ["a", "b"] * LEAST
    now[0], order[:] = 0.0, []
    quick = BUDGET / 1000
    found = median_seconds({"a": taking("a", quick)}, lambda: now[0])
    assert found == {"a": pytest.approx(quick)}
    assert len(order) == MOST


def test_divergence_is_for_good() -> None:
    """From the first loss that is not finite, all are infinite."""
    losses = np.array([[1.0, np.nan, 1.0], [1.0, 2.0, 3.0], [1.0, 1.0, -np.inf]])
    np.testing.assert_array_equal(
        until_divergence(losses), [[1, np.inf, np.inf], [1, 2, 3], [1, 1, np.inf]]
    )


def test_a_rate_too_large_diverges_alone(photo: Photo, plain: Runs) -> None:
    """A run that breaks counts as infinite and leaves its neighbors as they were."""
    runs = train_method(network("plain"), photo, replace(PLAN, rates=(0.1, 1e30)))
    assert np.isinf(runs.losses[1, :, -1]).all()
    assert not np.isfinite(runs.scores[1]).any()
    np.testing.assert_allclose(runs.losses[0], plain.losses[1], rtol=1e-4)
