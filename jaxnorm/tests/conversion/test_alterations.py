"""Models that change after their gates were found, and what a conversion leaves behind."""

import copy
import dataclasses
import gc
import pickle
import warnings
import weakref
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxnorm
from jaxnorm.conversion.choices import Choices
from jaxnorm.conversion.report import gate_name
from jaxnorm.linen import Deferred, Product, find_gates, init_statistics, neuronwise
from jaxnorm.nnx import PARAMS_AND_STATISTICS
from jaxnorm.nnx.wiring import _LOCAL

X = np.random.default_rng(0).normal(size=(6, 5)).astype("float32")


def relu(x):
    """By a name that can be pickled."""
    return jax.nn.relu(x)


def own(x):
    """An activation that is cut out of the program."""
    return x * jax.nn.sigmoid(1.702 * x) ** 1.5


class Net(nnx.Module):
    """A gate behind a normalization, a gated unit, a residual block, and one of its own."""

    def __init__(self, seed=0):
        rngs = nnx.Rngs(seed)
        self.first, self.norm = nnx.Linear(5, 8, rngs=rngs), nnx.BatchNorm(8, rngs=rngs)
        self.gate, self.up = nnx.Linear(8, 5, rngs=rngs), nnx.Linear(8, 5, rngs=rngs)
        self.block, self.last = Block(rngs), nnx.Linear(5, 2, rngs=rngs)
        self.phi, self.fail = relu, False

    def __call__(self, x):
        """Run it."""
        x = self.phi(self.norm(self.first(x)))
        gate = jax.nn.silu(self.gate(x))
        if self.fail:
            raise RuntimeError("failed")
        return self.last(self.block(gate * self.up(x)))


class Block(nnx.Module):
    """Its activation is that of a sum, which it returns."""

    def __init__(self, rngs):
        self.one, self.two = nnx.Linear(5, 7, rngs=rngs), nnx.Linear(7, 5, rngs=rngs)

    def __call__(self, x):
        """Run it."""
        return jax.nn.relu(x + self.two(own(self.one(x))))


class Nothing(nnx.Module):
    """In place of a normalization."""

    def __call__(self, x):
        """Return x."""
        return x


def converted():
    model = Net()
    report = jaxnorm.nnx.convert(model, example_input=X)
    assert len(report.deferred) == 4
    return model


def said(run):
    """The warnings of a run, which must be ours."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    texts = [str(each.message) for each in caught]
    assert all("jaxnorm.nnx.convert(model, ...) again" in text for text in texts)
    return texts


def gradient(model):
    by = nnx.DiffState(0, nnx.Param)
    found = nnx.jit(nnx.grad(lambda model: jnp.sum(model(X) ** 2), argnums=by))(model)
    return jax.tree.leaves(found)


CHANGES = {
    "another normalization": (
        lambda model: setattr(model, "norm", nnx.GroupNorm(8, 2, rngs=nnx.Rngs(0))),
        "gate of 'first': got no word of what its activation sees, expected it from 'norm'",
    ),
    "no normalization": (
        lambda model: setattr(model, "norm", Nothing()),
        "gate of 'first': got no word of what its activation sees, expected it from 'norm'",
    ),
    "another layer": (
        lambda model: setattr(model, "up", nnx.Linear(8, 5, rngs=nnx.Rngs(1))),
        "gate of 'gate': got no word of what its activation sees, expected it as soon as 'up' is "
        "called",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("jit", [False, True])
def test_a_gate_that_nobody_tells_is_reported_once(name, jit):
    change, text = CHANGES[name]
    model = converted()
    run = nnx.jit(lambda model: model(X)) if jit else lambda model: model(X)
    assert said(lambda: run(model)) == []
    change(model)
    first = said(lambda: run(model))
    assert len(first) == 1
    assert first[0].startswith(text)
    assert said(lambda: (run(model), run(model))) == []
    # What it says to do.
    jaxnorm.nnx.revert(model)
    jaxnorm.nnx.convert(model, example_input=X)
    assert said(lambda: run(model)) == []


def test_another_activation_is_reported_by_init_statistics():
    model = converted()
    assert said(lambda: jaxnorm.nnx.init_statistics(model, X)) == []
    model.phi = jax.nn.gelu
    (text,) = said(lambda: jaxnorm.nnx.init_statistics(model, X))
    assert text.startswith("gate of 'first': got gelu at 'norm' after it, expected relu at 'norm'")
    model = Net()
    jaxnorm.nnx.convert(model, {"first": "tanh"})  # what the user says is what the user wants
    assert said(lambda: jaxnorm.nnx.init_statistics(model, X)) == []


def test_what_is_replaced_in_training_is_reported_once():
    model = converted()
    jaxnorm.nnx.init_statistics(model, X)
    optimizer = jaxnorm.nnx.Optimizer(model, jaxnorm.in_neuron_coordinates(optax.sgd(0.01)))
    by = nnx.DiffState(0, PARAMS_AND_STATISTICS)

    @nnx.jit
    def step(model, optimizer):
        loss = lambda model: jnp.mean(model(X) ** 2)  # noqa: E731
        optimizer.update(model, nnx.grad(loss, argnums=by)(model))

    def steps():
        step(model, optimizer)
        step(model, optimizer)

    assert said(steps) == []
    model.eval()
    model.train()
    model.phi = jnp.tanh
    (text,) = said(steps)
    assert text.startswith("model at 'phi': got tanh, expected relu, as when the optimizer was")
    model.last = nnx.Linear(5, 2, rngs=nnx.Rngs(0))
    (text,) = said(steps)
    assert "model at 'last': got flax.nnx.nn.linear.Linear, expected jaxnorm" in text
    assert said(steps) == []


class Normed(nn.Module):
    """Dense, a normalization or none, an activation."""

    norm: bool = True

    @nn.compact
    def __call__(self, x, train=False):
        """Run it."""
        x = nn.Dense(8, name="first")(x)
        x = nn.LayerNorm(name="norm")(x) if self.norm else x
        return nn.relu(x) if not train else nn.gelu(x)


def test_linen_gates_that_nobody_tells_are_reported_once():
    variables = Normed().init(jax.random.key(0), X)
    for gate, place in (
        (Deferred("other", "relu"), "it from 'other'"),
        (Deferred("other", "relu", applied=True), "it from 'other'"),
        (Product("relu", "other", None), "it as soon as 'other' is called"),
    ):
        apply = neuronwise(Normed(), {"first": gate})
        with pytest.warns(UserWarning, match=f"gate of 'first': got no word .* expected {place}"):
            apply(variables, X)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            apply(variables, X)
            neuronwise(Normed(), {"first": Deferred("norm", "relu")})(variables, X)


def test_a_report_of_another_model_is_said_once():
    class Renamed(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3, name="second")(nn.relu(nn.Dense(8, name="other")(x)))

    variables = Renamed().init(jax.random.key(0), X)
    first = Normed()
    report = find_gates(first, first.init(jax.random.key(0), X), X)
    apply = neuronwise(Renamed(), report)
    with pytest.warns(UserWarning, match="got a report without it, expected one with") as caught:
        apply(variables, X)
    assert len(caught) == 1
    assert all(f"gate of {name!r}" in str(caught[0].message) for name in ("other", "second"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        apply(variables, X)
        neuronwise(Renamed(), find_gates(Renamed(), variables, X))(variables, X)


def test_linen_gates_are_found_for_what_is_run():
    """Flags among the arguments, and a module or function that the apply function refers to."""
    variables = Normed().init(jax.random.key(0), X)
    rule = jaxnorm.Rule(gradient="preconditioned")

    def same(apply, model, gate, **kwargs):
        def gradient(apply):
            loss = lambda params: jnp.sum(apply({"params": params}, X, **kwargs) ** 2)  # noqa: E731
            return jax.jit(jax.grad(loss))(variables["params"])["first"]

        right = neuronwise(model, {"first": gate}, rule=rule)
        jax.tree.map(np.testing.assert_array_equal, gradient(apply), gradient(right))

    apply = neuronwise(Normed(), rule=rule)
    for train in (False, True, False, np.bool_(True)):
        gate = Deferred("norm", "gelu" if train else "relu")
        same(apply, Normed(), gate, train=train)
    current = Normed()
    apply = neuronwise(lambda *args: current.apply(*args), rule=rule)
    same(apply, current, Deferred("norm", "relu"))
    current = Normed(False)
    same(apply, current, "relu")


@dataclasses.dataclass(eq=False)
class Settings:
    """What a user keeps beside a model, and may change."""

    name: str = "relu"
    phi: Any = jnp.tanh


class Configured(nn.Module):
    """A model that looks up its activations."""

    settings: Settings

    @nn.compact
    def __call__(self, x):
        """Run it."""
        x = getattr(jax.nn, self.settings.name)(nn.Dense(8, name="first")(x))
        return self.settings.phi(nn.Dense(3, name="second")(x))


def test_settings_that_a_model_holds(monkeypatch):
    settings, found = Settings(), []
    model = Configured(settings)
    variables = model.init(jax.random.key(0), X)

    def choose(report):
        found.append({row.layer: gate_name(row.gate) for row in report.rows})
        return Choices(report), report

    monkeypatch.setattr("jaxnorm.linen.convert._chosen", choose)
    apply = neuronwise(model)
    apply(variables, X)
    settings.name = "gelu"
    apply(variables, X)
    apply(variables, X)
    settings.phi = jnp.sin
    apply(variables, X)
    settings.name, settings.phi = "relu", jnp.tanh
    apply(variables, X)  # as at first
    assert found == [
        {"first": "relu", "second": "tanh"},
        {"first": "gelu", "second": "tanh"},
        {"first": "gelu", "second": "sin"},
    ]


def test_only_so_many_kinds_of_arguments_are_remembered(monkeypatch):
    """What changes from call to call is no flag: what was found with it is forgotten."""
    monkeypatch.setattr("jaxnorm.linen.convert._MOST_SIGNATURES", 2)

    class Notes:
        pass

    variables, kept = Normed().init(jax.random.key(0), X), []
    apply = neuronwise(Normed())
    for _ in range(4):
        notes = Notes()
        kept.append(weakref.ref(notes))
        apply(variables, X, train=notes)
    del notes
    gc.collect()
    assert sum(each() is not None for each in kept) <= 2


def waiting():
    handover = vars(_LOCAL.handover).values()
    return sum(map(len, handover)) + len(_LOCAL.around)


def test_nothing_waits_after_an_exception():
    model = converted()
    model.fail = True
    with pytest.raises(RuntimeError, match="failed"):
        model(X)
    assert waiting() == 0
    with pytest.raises(RuntimeError, match="failed"):
        nnx.jit(lambda model: model(X))(model)
    assert waiting() == 0
    model.fail = False
    assert said(lambda: model(X)) == []
    assert waiting() == 0


def test_a_failed_conversion_leaves_the_model_as_it_was():
    model = Net()
    before = nnx.graphdef(model)
    model.fail = True
    with pytest.raises(RuntimeError, match="failed"):
        jaxnorm.nnx.convert(model, example_input=X)
    model.fail = False
    assert nnx.graphdef(model) == before
    report = jaxnorm.nnx.convert(model, example_input=X)
    jaxnorm.nnx.init_statistics(model, X)
    assert pickle.loads(pickle.dumps(report)).rows[0].layer == report.rows[0].layer
    jaxnorm.nnx.revert(model)
    assert nnx.graphdef(model) == before


def test_linen_leaves_nothing_after_an_exception():
    seen = []

    class Failing(nn.Module):
        @nn.compact
        def __call__(self, x):
            z = nn.Dense(3)(x)
            seen.append(weakref.ref(z))
            raise RuntimeError("failed")

    model = Failing()
    params = {"params": {"Dense_0": nn.Dense(3).init(jax.random.key(0), X)["params"]}}
    for gates in ("auto", {"*": Product("relu", "other", None)}, {"*": Deferred("other", "relu")}):
        for run in (
            lambda gates=gates: neuronwise(model, gates)(params, X),
            lambda gates=gates: init_statistics(neuronwise(model, gates), params, X),
            lambda: find_gates(model, params, X),
        ):
            with pytest.raises(RuntimeError, match="failed"):
                run()
    gc.collect()
    assert seen
    assert all(each() is None for each in seen)


COPIES = {
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "deepcopy": copy.deepcopy,
    "clone": nnx.clone,
    "split and merge": lambda model: nnx.merge(*nnx.split(model)),
    "state": lambda model: restored(model),
}


def restored(model):
    """Another model with the state of this one, as a checkpoint restores it."""
    other = Net(seed=1)
    jaxnorm.nnx.convert(other, example_input=X)
    jaxnorm.nnx.init_statistics(other, X)
    nnx.update(other, nnx.to_pure_dict(nnx.state(model)))
    return other


@pytest.mark.parametrize("name", COPIES)
def test_copies_train_as_the_model(name):
    model = converted()
    jaxnorm.nnx.init_statistics(model, X)
    other = COPIES[name](model)

    def both(model):
        by = nnx.DiffState(0, PARAMS_AND_STATISTICS)
        return nnx.jit(nnx.grad(lambda model: jnp.sum(model(X) ** 2), argnums=by))(model)

    expected, found = both(model), both(other)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    jaxnorm.nnx.revert(other)
    assert type(other) is Net
    assert nnx.graphdef(other) == nnx.graphdef(Net())


@pytest.mark.slow
def test_no_traced_value_outlives_its_trace():
    variables = Normed().init(jax.random.key(0), X)
    model = Net()
    with jax.checking_leaks():
        find_gates(Normed(), variables, X)
        init_statistics(neuronwise(Normed()), variables, X)
        jaxnorm.nnx.convert(model, example_input=X)
        jaxnorm.nnx.init_statistics(model, X)


def test_gates_that_were_cut_out_are_copied():
    model = Block(nnx.Rngs(0))
    report = jaxnorm.nnx.convert(
        model, example_input=X, rule=jaxnorm.Rule(gradient="preconditioned")
    )
    assert str(report["one"].gate) == "<own>" or "elementwise" in str(report["one"].gate)
    expected = gradient(model)
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        jax.tree.map(np.testing.assert_array_equal, gradient(other), expected)
    z = jnp.linspace(-3, 3, 7)
    again = pickle.loads(pickle.dumps(report))["one"].gate
    np.testing.assert_array_equal(again(z), report["one"].gate(z))
