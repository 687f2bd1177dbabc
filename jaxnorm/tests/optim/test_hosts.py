"""What carries the statistics, subclassed as Flax's; and layers that no step reaches."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, serialization, struct
from flax.linen.fp8_ops import OVERWRITE_WITH_GRADIENT
from flax.training import train_state

import jaxnorm
from jaxnorm import Rule
from jaxnorm.linen import TrainState, init_statistics, neuronwise
from jaxnorm.nnx import PARAMS_AND_STATISTICS

X = np.random.default_rng(0).normal(size=(16, 5)) + 2
COTANGENT = np.random.default_rng(1).normal(size=(16, 3))


class Keyed(TrainState):
    """One field more, without a default."""

    key: jax.Array


class Normalized(TrainState):
    """As for BatchNorm in Flax's guides, with a default behind."""

    batch_stats: Any
    key: jax.Array
    ema: Any = None


class Further(Keyed):
    """A subclass of one, with a field that is no pytree."""

    batch_stats: Any
    name: str = struct.field(pytree_node=False)


class ByKeyword(TrainState, kw_only=True):
    """In any order."""

    loss: float = 0.0
    key: jax.Array


class Counting(TrainState):
    """With methods of its own."""

    rounds: Any

    @classmethod
    def create(cls, **kwargs):
        """Start to count."""
        return super().create(rounds=0, **kwargs)

    def apply_gradients(self, *, grads, **kwargs):
        """Count."""
        return super().apply_gradients(grads=grads, rounds=self.rounds + 1, **kwargs)


KEY = jax.random.key(0)
STATES: dict[type, dict[str, Any]] = {
    TrainState: {},
    Keyed: {"key": KEY},
    Normalized: {"key": KEY, "batch_stats": {"a": np.ones(2)}},
    Further: {"key": KEY, "batch_stats": {}, "name": "further"},
    ByKeyword: {"key": KEY},
    Counting: {},
}


class Heads(nn.Module):
    """A backbone and two heads, of which one is used; float64."""

    stopped: bool = False

    @nn.compact
    def __call__(self, x, head=0):
        """Run it."""
        dense = functools.partial(nn.Dense, param_dtype=jnp.float64)
        x = nn.tanh(dense(8, name="backbone")(x))
        x = jax.lax.stop_gradient(x) if self.stopped else x
        heads = [dense(3, name=f"head_{n}")(x) for n in range(2)]
        return heads[head]


def prepared(model=Heads(), rule=Rule(), tx=None, cls=TrainState, **kwargs):
    """A state in the coordinates."""
    params = model.init(jax.random.key(0), X)["params"]
    # Of the head that is not used nothing is known to be followed: named, not found.
    apply = neuronwise(model, {"backbone": "tanh", "*": None}, rule=rule)
    return cls.create(
        apply_fn=apply,
        params=params,
        neuron_stats=init_statistics(apply, {"params": params}, X),
        tx=jaxnorm.in_neuron_coordinates(tx or optax.sgd(0.01)),
        **kwargs,
    )


@jax.jit
def step(state, x, cotangent):
    """One step, compiled."""

    def loss(params, stats):
        return jnp.sum(cotangent * state.apply_fn({"params": params, "neuron_stats": stats}, x))

    grads, stats = jax.grad(loss, (0, 1))(state.params, state.neuron_stats)
    return state.apply_gradients(grads=grads, neuron_stats=stats)


@pytest.mark.parametrize("cls", STATES)
def test_states_can_be_subclassed_as_flaxs(cls):
    state = prepared(cls=cls, **STATES[cls])
    assert type(state) is cls
    plain = step(step(prepared(), X, COTANGENT), X, COTANGENT)
    state = step(step(state, X, COTANGENT), X, COTANGENT)
    assert type(state) is cls
    assert state.step == 2
    assert getattr(state, "rounds", 2) == 2
    jax.tree.map(np.testing.assert_array_equal, state.params, plain.params)
    for name, value in STATES[cls].items():
        jax.tree.map(lambda a, b: bool(jnp.all(a == b)), getattr(state, name), value)
    saved = serialization.to_state_dict(state)
    assert type(serialization.from_state_dict(state, saved)) is cls
    # Positions too are those of Flax's fields, with the statistics behind.
    names = [field.name for field in dataclasses.fields(cls)]
    flax = [field.name for field in dataclasses.fields(train_state.TrainState)]
    assert names[: len(flax) + 1] == [*flax, "neuron_stats"]


def test_a_missing_field_is_pythons_error():
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'key'"):
        prepared(cls=Keyed)
    with pytest.raises(TypeError, match=r"missing .* 'batch_stats'"):
        prepared(cls=Normalized, key=KEY)
    with pytest.raises(ValueError, match="neuron_stats: got None"):
        Keyed.create(apply_fn=None, params={}, tx=optax.sgd(0.1), key=KEY)


def test_what_the_gradient_overwrites():
    """As Flax's state: scales of fp8, say, are no parameters of the optimizer."""
    plain = prepared()
    state = TrainState.create(
        apply_fn=plain.apply_fn,
        params={"params": plain.params, OVERWRITE_WITH_GRADIENT: {"scale": jnp.ones(2)}},
        neuron_stats=plain.neuron_stats,
        tx=plain.tx,
    )

    def loss(params, stats):
        variables = {"params": params["params"], "neuron_stats": stats}
        scale = params[OVERWRITE_WITH_GRADIENT]["scale"]
        return jnp.sum(COTANGENT * state.apply_fn(variables, X)) + jnp.sum(3 * scale)

    grads, stats = jax.grad(loss, (0, 1))(state.params, state.neuron_stats)
    state = state.apply_gradients(grads=grads, neuron_stats=stats)
    np.testing.assert_array_equal(state.params[OVERWRITE_WITH_GRADIENT]["scale"], [3.0, 3.0])
    expected = step(plain, X, COTANGENT).params
    for a, b in zip(
        jax.tree.leaves(state.params["params"]), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def moved(before, after):
    """Layer -> whether any of its parameters has changed."""
    return {
        name: any(
            bool(jnp.any(a != b))
            for a, b in zip(
                jax.tree.leaves(before[name]), jax.tree.leaves(after[name]), strict=True
            )
        )
        for name in before
    }


def finite(tree):
    return all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("decay", [0.0, 0.9])
@pytest.mark.parametrize("stopped", [False, True])
def test_layers_that_no_step_reaches(stopped, decay):
    first = prepared(Heads(stopped), Rule(decay=decay), optax.adam(0.01))
    state = step(step(first, X, COTANGENT), X, COTANGENT)
    assert finite((state.params, state.opt_state))
    reached = {"backbone": not stopped, "head_0": True, "head_1": False}
    assert moved(first.params, state.params) == reached
    skipped = jaxnorm.skipped_steps(state.neuron_stats)
    assert skipped == {name: 0 if ever else 2 for name, ever in reached.items()}


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_a_last_batch_of_one(decay):
    first = prepared(rule=Rule(decay=decay), tx=optax.adam(0.01))
    state = step(step(first, X, COTANGENT), X[:1], COTANGENT[:1])
    assert finite((state.params, state.opt_state))
    assert jaxnorm.skipped_steps(state.neuron_stats)["head_0"] == 0
    alone = step(first, X[:1], COTANGENT[:1])
    assert finite((alone.params, alone.opt_state))
    assert finite(step(alone, X, COTANGENT).params)


class NnxHeads(nnx.Module):
    """As `Heads`."""

    def __init__(self):
        kwargs = {"rngs": nnx.Rngs(0), "param_dtype": jnp.float64}
        self.backbone = nnx.Linear(5, 8, **kwargs)
        self.heads = nnx.List([nnx.Linear(8, 3, **kwargs) for _ in range(2)])

    def __call__(self, x, head=0):
        """Run it."""
        x = nnx.tanh(self.backbone(x))
        return [head(x) for head in self.heads][head]


class Averaging(jaxnorm.nnx.Optimizer):
    """With an argument and a variable of its own."""

    def __init__(self, model, tx, share, **kwargs):
        super().__init__(model, tx, **kwargs)
        self.share, self.steps = share, nnx.Variable(jnp.zeros(()))

    def update(self, model, grads, **kwargs):
        """Count."""
        self.steps[...] += 1
        return super().update(model, grads, **kwargs)


def nnx_prepared(tx, make=jaxnorm.nnx.Optimizer, **kwargs):
    model = NnxHeads()
    jaxnorm.nnx.convert(model, {"backbone": "tanh", "*": None})
    jaxnorm.nnx.init_statistics(model, X)
    return model, make(model, jaxnorm.in_neuron_coordinates(tx), **kwargs)


@nnx.jit
def nnx_step(model, optimizer, x, cotangent):
    """One step, compiled."""
    by = nnx.DiffState(0, PARAMS_AND_STATISTICS)
    grads = nnx.grad(lambda model: jnp.sum(cotangent * model(x)), argnums=by)(model)
    optimizer.update(model, grads)


def nnx_params(model):
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def test_optimizers_can_be_subclassed_as_flaxs():
    model, optimizer = nnx_prepared(optax.sgd(0.01), Averaging, share=0.9, wrt=nnx.Param)
    plain = nnx_prepared(optax.sgd(0.01))
    for _ in range(2):
        nnx_step(model, optimizer, X, COTANGENT)
        nnx_step(*plain, X, COTANGENT)
    assert optimizer.steps[...] == 2
    assert optimizer.share == 0.9
    jax.tree.map(np.testing.assert_array_equal, nnx_params(model), nnx_params(plain[0]))


def test_layers_and_batches_that_give_nnx_no_statistics():
    model, optimizer = nnx_prepared(optax.adam(0.01))
    before = nnx_params(model)
    nnx_step(model, optimizer, X, COTANGENT)
    nnx_step(model, optimizer, X[:1], COTANGENT[:1])
    after = nnx_params(model)
    assert finite((after, nnx.state(optimizer, nnx.Param)))
    assert moved({"backbone": before["backbone"]}, {"backbone": after["backbone"]})["backbone"]
    heads = moved(before["heads"], after["heads"])
    assert heads == {0: True, 1: False}


class Scaled(jaxnorm.linen.Dense):
    """A layer with a field of its own."""

    scale: float = 2.0

    @nn.compact
    def __call__(self, inputs):
        """Scale z."""
        return self.scale * self.apply_rule(inputs)


class Gated(jaxnorm.linen.Conv):
    """A layer that knows its gate."""

    gate: Any = "relu"


class NnxScaled(jaxnorm.nnx.Linear):
    """A layer with an argument of its own."""

    def __init__(self, features_in, features_out, scale, **kwargs):
        super().__init__(features_in, features_out, gate="relu", **kwargs)
        self.scale = scale

    def __call__(self, inputs):
        """Scale z."""
        return self.scale * super().__call__(inputs)


def test_layers_can_be_subclassed():
    for layer, x in (
        (Scaled(3, gate="relu"), X),
        (Scaled(3, gate=None, scale=3.0), X),
        (Gated(3, (3,)), X[..., None]),
        (Gated(3, (3,), gate=None), X[..., None]),
    ):
        variables = layer.init(jax.random.key(0), x)
        assert list(init_statistics(layer, variables, x)) == ["statistics"]
    layer = NnxScaled(5, 3, 2.0, rngs=nnx.Rngs(0))
    jaxnorm.nnx.init_statistics(layer, X.astype("float32"))
    assert layer.neuron_stats.get_value().stack == 0
