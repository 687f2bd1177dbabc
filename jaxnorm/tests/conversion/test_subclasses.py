"""Subclasses of Flax's layers: those that compute what their base does are layers too."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

import jaxnorm
from jaxnorm.statistics import merging

X = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32) + 2


class Wide(nn.Dense):
    """Another default, and a method beside its base's."""

    features: int = 8

    def width(self):
        """Of its output."""
        return self.features


class Turned(nn.Dense):
    """A forward pass of its own."""

    @nn.compact
    def __call__(self, inputs):
        """The negative."""
        return -super().__call__(inputs)


class Model(nn.Module):
    """With a layer of some class."""

    kind: type

    @nn.compact
    def __call__(self, x):
        """Two layers."""
        h = nn.relu(self.kind(8)(x))
        return nn.Dense(2)(h)


def test_linen():
    variables = Model(Wide).init(jax.random.key(0), X)
    report = jaxnorm.linen.find_gates(Model(Wide), variables, X)
    assert [(row.kind, row.gate) for row in report.rows] == [("Wide", "relu"), ("Dense", None)]
    apply = jaxnorm.linen.neuronwise(Model(Wide))
    stats = jaxnorm.linen.init_statistics(apply, variables, X)
    batch = jax.grad(lambda s: jnp.sum(apply({**variables, "neuron_stats": s}, X)))(stats)
    plain = jaxnorm.linen.neuronwise(Model(nn.Dense))
    params = {"Dense_0": variables["params"]["Wide_0"], "Dense_1": variables["params"]["Dense_0"]}
    other = jaxnorm.linen.init_statistics(plain, {"params": params}, X)
    expected = jax.grad(lambda s: jnp.sum(plain({"params": params, "neuron_stats": s}, X)))(other)
    mine, theirs = (
        merging.moments(tree["statistics"]) for tree in (batch["Wide_0"], expected["Dense_0"])
    )
    np.testing.assert_array_equal(mine.sigma, theirs.sigma)
    variables = Model(Turned).init(jax.random.key(0), X)
    row = jaxnorm.linen.find_gates(Model(Turned), variables, X)["Turned_0"]
    assert row.gate is jaxnorm.linen.LEAVE
    assert row.reason == "a subclass with methods of its own in place of its base's"


class Named(nnx.Linear):
    """A constructor of its own."""

    def __init__(self, rngs):
        super().__init__(5, 8, rngs=rngs)
        self.name = "named"


class Negative(nnx.Linear):
    """A forward pass of its own."""

    def __call__(self, x):
        """The negative."""
        return -super().__call__(x)


def test_nnx():
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(
        Named(rngs), nnx.relu, Negative(8, 8, rngs=rngs), nnx.Linear(8, 2, rngs=rngs)
    )
    before, out = nnx.graphdef(model), model(X)
    report = jaxnorm.nnx.convert(model, example_input=X)
    assert [row.layer for row in report.converted] == ["layers/0", "layers/3"]
    assert report["layers/0"].gate == "relu"
    np.testing.assert_array_equal(model(X), out)
    layer = model.layers[0]
    for each in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert isinstance(each, Named)
        assert isinstance(each, jaxnorm.nnx.Linear)
        assert each.name == "named"
        np.testing.assert_array_equal(each(X), layer(X))
    stats = jaxnorm.nnx.init_statistics(model, X)
    assert stats is None or model.layers[0].neuron_stats is not None
    jaxnorm.nnx.revert(model)
    assert type(model.layers[0]) is Named
    assert nnx.graphdef(model) == before
