"""Lifted transformations: every layer records, or an error names the line to add."""

import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxnorm
from jaxnorm.linen import LEAVE, find_gates, init_statistics, neuronwise
from jaxnorm.nnx import PARAMS_AND_STATISTICS
from jaxnorm.statistics.tracked import Statistics

X = np.random.default_rng(0).normal(size=(6, 5)) + 3
F64 = {"param_dtype": jnp.float64}
COTANGENT = np.random.default_rng(1).normal(size=(6, 5))
BOTH = ["params", "neuron_stats"]


class Layer(nn.Module):
    """One layer and its activation; ours if it is told the gate."""

    ours: bool = False

    @nn.compact
    def __call__(self, x, _=None):
        """Apply them."""
        layer = jaxnorm.linen.Dense(5, gate="relu", **F64) if self.ours else nn.Dense(5, **F64)
        return nn.relu(layer(x))


class Carried(Layer):
    """As the body of a scan."""

    @nn.compact
    def __call__(self, x, _=None):
        """The carry, and nothing else."""
        return super().__call__(x), None


class Lifted(nn.Module):
    """Layers inside of a transformation."""

    lift: Any
    ours: bool = False

    @nn.compact
    def __call__(self, x):
        """Apply them."""
        return self.lift(self, x)


def scan(**kwargs):
    kwargs = {"split_rngs": {"params": True}, "length": 4, **kwargs}
    return lambda self, x: nn.scan(Carried, **kwargs)(self.ours)(x, None)[0]


def shared(**kwargs):
    """The same weights in every round."""

    def lift(self, x):
        def body(layer, x, _):
            return layer(x), None

        kwargs_ = {"split_rngs": {"params": False}, "length": 3, **kwargs}
        return nn.scan(body, **kwargs_)(Layer(self.ours, name="one"), x, None)[0]

    return lift


def vmap(params, copies=3, **kwargs):
    def lift(self, x):
        lifted = nn.vmap(Layer, split_rngs={"params": params is not None}, **kwargs)
        return lifted(self.ours)(jnp.stack([x * (n + 1) for n in range(copies)])).sum(0)

    return lift


def simple(transformation, **kwargs):
    return lambda self, x: transformation(Layer, **kwargs)(self.ours)(x)


def branch(self, x):
    one, other = Layer(self.ours, name="one"), Layer(self.ours, name="other")
    if self.is_initializing():
        return other(one(x))
    branches = [lambda one, other, x: one(x), lambda one, other, x: other(x)]
    return nn.switch(jnp.int32(jnp.sum(x) > 0), branches, one, other, x)


def condition(self, x):
    one = Layer(self.ours, name="one")
    if self.is_initializing():
        return one(x)
    return nn.cond(jnp.sum(x) > 0, lambda one, x: one(x), lambda one, x: x, one, x)


def compiled(self, x):
    """Modules that share one trace, in which Flax shows the first name only."""
    run = nn.jit(lambda layer, x: layer(x))
    for _ in range(3):
        x = run(Layer(self.ours), x)
    return x


def bound(self, x):
    def run(layer, x):
        return layer(x)

    def forward(layer, x):
        return nn.vjp(run, layer, x, vjp_variables=BOTH)

    def backward(pull, cotangent):
        parameters, x = pull(cotangent)
        return parameters, x

    layer = Layer(self.ours, name="one")
    return nn.custom_vjp(run, forward, backward, grad_vars=BOTH)(layer, x)


#: All of these record, in as many calls.
RECORD: dict[str, tuple[Any, Any]] = {
    "scan": (scan(variable_axes={"params": 0, "neuron_stats": 0}), np.ones(4)),
    "scan of everything": (scan(variable_axes={True: 0}), np.ones(4)),
    "remat_scan": (
        lambda self, x: nn.remat_scan(Layer, lengths=(2, 2))(self.ours)(x),
        np.ones((2, 2)),
    ),
    "scan of the same": (shared(variable_broadcast=BOTH), 3),
    "vmap": (vmap(0, variable_axes={"params": 0, "neuron_stats": 0}), np.ones(3)),
    "vmap of the same": (vmap(None, variable_axes=dict.fromkeys(BOTH)), None),
    "jit": (simple(nn.jit), 1),
    "jit of listed": (simple(nn.jit, variables=BOTH), 1),
    "jit of modules": (compiled, 1),
    "remat": (simple(nn.remat), 1),
    "remat of listed": (simple(nn.remat, variables=BOTH), 1),
    "cond": (condition, 1),
    "switch": (branch, None),
    "custom_vjp": (bound, 1),
    "map_variables": (simple(nn.map_variables, mapped_collections="params", init=True), 1),
}
#: These do not, and what has to be added is in the error.
MISS = {
    "scan": (scan(variable_axes={"params": 0}), 'variable_axes={"params": 0, "neuron_stats": 0}'),
    "vmap": (
        vmap(0, variable_axes={"params": 0}),
        'variable_axes={"params": 0, "neuron_stats": 0}',
    ),
    "vmap of the same": (
        vmap(None, variable_axes={"params": None}),
        'variable_axes={"params": None, "neuron_stats": None}',
    ),
    "vmap of the same, listed otherwise": (
        vmap(None, variable_axes={"params": None, "neuron_stats": 0}),
        'variable_axes={"params": None, "neuron_stats": None}',
    ),
    "scan of the same": (
        shared(variable_broadcast="params"),
        'variable_broadcast=["params", "neuron_stats"]',
    ),
    "scan of the same, listed otherwise": (
        shared(variable_broadcast="params", variable_axes={"neuron_stats": 0}),
        'variable_broadcast=["params", "neuron_stats"]',
    ),
    "jit": (simple(nn.jit, variables="params"), 'variables=["params", "neuron_stats"]'),
    "remat": (simple(nn.remat, variables="params"), 'variables=["params", "neuron_stats"]'),
    "scan along another axis": (
        scan(variable_axes={"params": 1, "neuron_stats": 1}),
        'variable_axes={"params": 0, "neuron_stats": 0}',
    ),
    "scan along two axes": (
        scan(variable_axes={"params": 1, "neuron_stats": 0}),
        'variable_axes={"params": 0, "neuron_stats": 0}',
    ),
    "scan of square kernels along another axis": (
        scan(variable_axes={"params": 1, "neuron_stats": 0}, length=5),
        'variable_axes={"params": 0, "neuron_stats": 0}',
    ),
    "vmap of square kernels along another axis": (
        vmap(0, variable_axes={"params": 1, "neuron_stats": 0}, copies=5),
        'variable_axes={"params": 0, "neuron_stats": 0}',
    ),
    "map_variables": (
        simple(
            nn.map_variables,
            mapped_collections="params",
            trans_in_fn=lambda tree: jax.tree.map(jnp.transpose, tree),
            trans_out_fn=lambda tree: jax.tree.map(jnp.transpose, tree),
            mutable=True,
        ),
        "leave the layer out with gates=",
    ),
    "vmap along another axis": (
        vmap(0, variable_axes={"params": 1, "neuron_stats": 1}),
        'variable_axes={"params": 0, "neuron_stats": 0}',
    ),
}


def records(tree):
    return [
        each
        for each in jax.tree.leaves(tree, is_leaf=lambda t: isinstance(t, Statistics))
        if isinstance(each, Statistics)
    ]


def gradients(apply, params, stats):
    def loss(params, stats):
        return jnp.sum(COTANGENT * apply({"params": params, "neuron_stats": stats}, X))

    return jax.jit(jax.grad(loss, (0, 1)))(params, stats)


@jax.jit
def step(params, grads, stats, batch):
    """The step of a gradient with a batch's statistics."""
    tx = jaxnorm.in_neuron_coordinates(optax.sgd(0.1))
    merged = jaxnorm.update_statistics(stats, batch)
    return tx.update(grads, tx.init(params), params, neuron_stats=merged)[0]


@pytest.mark.parametrize("ours", [False, True], ids=["converted", "ours"])
@pytest.mark.parametrize("name", RECORD)
def test_every_layer_records(name, ours):
    lift, calls = RECORD[name]
    model = Lifted(lift, ours)
    params = jax.jit(model.init)(jax.random.key(0), X)["params"]
    apply = model.apply if ours else neuronwise(model, {"*": "relu"})
    stats = init_statistics(apply, {"params": params}, X)
    # As many layers as there are kernels, and each as it is stacked.
    leaves = jax.tree_util.tree_leaves_with_path(params)
    kernels = [leaf for path, leaf in leaves if path[-1].key == "kernel"]
    assert sorted(each.center.shape for each in records(stats)) == sorted(
        kernel.shape[:-1] for kernel in kernels
    )
    grads, batch = gradients(apply, params, stats)
    assert all(np.any(g) for g in jax.tree.leaves(grads)) or name == "switch"
    if calls is not None:
        for each in records(batch):
            np.testing.assert_array_equal(each.calls, calls)
    steps = step(params, grads, stats, batch)
    for moved, grad in zip(jax.tree.leaves(steps), jax.tree.leaves(grads), strict=True):
        assert np.isfinite(moved).all()
        assert np.any(moved) == np.any(grad)


@pytest.mark.parametrize("ours", [False, True], ids=["converted", "ours"])
@pytest.mark.parametrize("name", MISS)
def test_what_does_not_take_the_statistics_along(name, ours):
    lift, line = MISS[name]
    model = Lifted(lift, ours)
    variables = jax.jit(model.init)(jax.random.key(0), X)
    apply = model.apply if ours else neuronwise(model, {"*": "relu"})
    with pytest.raises(ValueError, match=re.escape(line)) as caught:
        init_statistics(apply, variables, X)
    assert re.match(r"(neuron_stats|params): got .*, expected .*", str(caught.value))


def test_as_left_out_a_layer_trains_as_the_frameworks():
    """What the error says: leave it out with gates=."""
    model = nn.Sequential([Lifted(MISS["scan"][0]), nn.Dense(3, **F64)])
    variables = model.init(jax.random.key(0), X)
    gates = {"layers_0/*": LEAVE, "*": None}
    assert list(init_statistics(neuronwise(model, gates), variables, X)) == ["layers_1"]


def test_the_same_weights_count_every_example():
    """Under `nn.vmap` with one set of weights the statistics are those of all examples."""
    model = Lifted(RECORD["vmap of the same"][0])
    params = model.init(jax.random.key(0), X)["params"]
    apply = neuronwise(model)
    (batch,) = records(gradients(apply, params, init_statistics(apply, {"params": params}, X))[1])
    assert batch.samples == 3 * len(X)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda a: a.T, "its kernel is a parameter with its axes in another order"),
        (lambda a: 2 * a, "its kernel is a function of other parameters"),
        (lambda a: a / jnp.linalg.norm(a), "its kernel is a function of other parameters"),
    ],
)
def test_computed_kernels_are_left_alone(change, reason):
    """Steps of the parameter are not steps of the kernel."""

    def lift(self, x):
        mapped = nn.map_variables(
            Layer, "params", lambda tree: jax.tree.map(change, tree), init=False
        )
        return mapped(name="one")(x)

    params = Layer().init(jax.random.key(0), X)["params"]
    (row,) = find_gates(Lifted(lift), {"params": {"one": params}}, X).rows
    assert (row.gate, row.reason) == (LEAVE, reason)


def test_casts_of_parameters_are_no_other_parameters():
    model = Layer()
    variables = model.init(jax.random.key(0), X)

    def apply(variables, x):
        return model.apply(jax.tree.map(lambda a: a.astype(jnp.float32), variables), x)

    assert find_gates(apply, variables, X)["Dense_0"].gate == "relu"


def test_a_model_of_its_own_inside():
    """On parameters that are no layer's of the model: nothing to record there, and no error."""

    class Inside(nn.Module):
        @nn.compact
        def __call__(self, x):
            frozen = Layer().init(jax.random.key(1), x)
            return nn.Dense(3, name="head")(Layer().apply(frozen, x))

    variables = Inside().init(jax.random.key(0), X)
    stats = init_statistics(neuronwise(Inside(), {"*": None}), variables, X)
    assert list(stats) == ["head"]


def test_apply_functions_that_return_only_the_output():
    model = Layer()
    variables = model.init(jax.random.key(0), X)
    stats = init_statistics(neuronwise(lambda v, x: model.apply(v, x)), variables, X)
    assert list(stats) == ["Dense_0"]
    with pytest.raises(ValueError, match="neuron_stats: got none in the layer 'Dense_0'"):
        init_statistics(
            neuronwise(lambda v, x: model.apply({"params": v["params"]}, x)), variables, X
        )


class Stack(nnx.Module):
    """A stack of blocks that is scanned."""

    def __init__(self, axes, length=4):
        @nnx.split_rngs(splits=length)
        @nnx.vmap(in_axes=(0,))
        def blocks(rngs):
            return nnx.Linear(5, 5, rngs=rngs)

        self.axes, self.blocks = axes, blocks(nnx.Rngs(0))

    def __call__(self, x):
        """Run them."""

        @nnx.scan(in_axes=(self.axes, nnx.Carry), out_axes=nnx.Carry)
        def run(block, x):
            return jax.nn.relu(block(x))

        return run(self.blocks, x)


@pytest.mark.parametrize("axes", [0, nnx.StateAxes({PARAMS_AND_STATISTICS: 0, ...: None})])
def test_stacks_of_nnx(axes):
    model, x = Stack(axes), X.astype(np.float32)
    jaxnorm.nnx.convert(model, example_input=x)
    jaxnorm.nnx.init_statistics(model, x)
    by = nnx.DiffState(0, PARAMS_AND_STATISTICS)
    grads = nnx.grad(lambda model: jnp.sum(model(x)), argnums=by)(model)
    np.testing.assert_array_equal(grads["blocks"]["neuron_stats"].get_value().calls, np.ones(4))


def test_stacks_of_nnx_along_another_axis():
    model = Stack(nnx.StateAxes({nnx.Param: 1, ...: None}), length=5)
    with pytest.raises(ValueError, match=re.escape("{jaxnorm.nnx.PARAMS_AND_STATISTICS: 0, ")):
        jaxnorm.nnx.convert(model.blocks, {"*": "relu"})
        jaxnorm.nnx.init_statistics(model, X.astype(np.float32))


def test_stacks_of_nnx_without_their_statistics():
    model, x = Stack(nnx.StateAxes({nnx.Param: 0, ...: None})), X.astype(np.float32)
    jaxnorm.nnx.convert(model, example_input=x)
    jaxnorm.nnx.init_statistics(model, x)
    with pytest.raises(ValueError, match=re.escape("{jaxnorm.nnx.PARAMS_AND_STATISTICS: 0, ")):
        model(x)
