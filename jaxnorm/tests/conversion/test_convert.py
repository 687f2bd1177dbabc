"""Whole Flax models: gates that must not be mistaken for others, and layers that must not be."""

import copy
import pickle

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxnorm
from jaxnorm.linen import LEAVE, Deferred, find_gates, neuronwise

X = np.random.default_rng(0).normal(size=(3, 4, 4)).astype("float32")


def rows(model, x=X):
    """What is found in a model that is not run."""
    variables = jax.eval_shape(lambda key: model.init(key, x), jax.random.key(0))
    return find_gates(model, variables, x).rows


def behind(activation, features=4):
    """What is found behind one layer."""
    return rows(nn.Sequential([nn.Dense(features), activation]))[0]


@pytest.mark.parametrize(
    "kwargs", [{"axis": (-1, 1)}, {"axis": (2, 1)}, {"axis": -1, "batch_dims": (1, 0)}], ids=str
)
def test_axes_in_any_order(kwargs):
    reference = nn.DenseGeneral((2, 3), **kwargs)
    ours = jaxnorm.linen.DenseGeneral((2, 3), gate=None, **kwargs)
    variables, own = (each.init(jax.random.key(0), X) for each in (reference, ours))
    jax.tree.map(np.testing.assert_array_equal, variables, own)
    for apply in (ours.apply, neuronwise(reference, {"*": None})):
        np.testing.assert_array_equal(apply(variables, X), reference.apply(variables, X))
    if "batch_dims" not in kwargs:
        layer = nnx.LinearGeneral((4, 4), 2, rngs=nnx.Rngs(0), **kwargs)
        expected = layer(X)
        jaxnorm.nnx.convert(layer, {"*": None})
        np.testing.assert_array_equal(layer(X), expected)


def _swiglu(z):
    a, b = jnp.split(z, 2, axis=-1)
    return nn.silu(a) * b


def _interleaved(z):
    z = z.reshape(*z.shape[:-1], -1, 2)
    return nn.silu(z[..., 0]) * z[..., 1]


@pytest.mark.parametrize(
    "activation",
    [_interleaved, lambda z: _swiglu(z[..., ::-1]), lambda z: _swiglu(jnp.swapaxes(z, 1, 2))],
)
def test_joint_gates_of_other_entries(activation):
    row = behind(activation)
    assert row.gate is None
    assert row.unresolved
    assert isinstance(behind(lambda z: _swiglu(z.reshape(12, 4))).gate, jaxnorm.JointGate)


class Combined(nn.Module):
    """The activation of a sum or product of layers."""

    combine: object

    @nn.compact
    def __call__(self, x):
        """Apply it."""
        return jnp.tanh(self.combine(x, [nn.Dense(4)(x) for _ in range(4)])).sum()


@pytest.mark.parametrize(
    "combine",
    [
        lambda x, z: z[0] * z[1] + z[2] * z[3],
        lambda x, z: x * z[0] + z[1] + z[2] + z[3],
        lambda x, z: nn.silu(z[0]) * z[1] + z[2] + z[3],
    ],
)
def test_activations_of_sums_and_products(combine):
    for row in rows(Combined(combine)):
        assert row.unresolved or isinstance(row.gate, Deferred), row
        assert isinstance(row.gate, Deferred) or row.gate is None


def test_slopes_far_out():
    assert behind(lambda z: jnp.minimum(nn.relu(z), 100.0)).gate != "relu"
    assert behind(lambda z: jnp.clip(z, -100.0, 100.0)).gate is not None
    one, other = (behind(f).gate for f in (nn.relu, lambda z: nn.relu(z) + nn.elu(z) ** 4))
    assert one == "relu" != other
    both = behind(lambda z: jnp.stack([jnp.exp(z), jnp.exp(z) - nn.softplus(z)]))
    assert both.reason == "direct, in 2 places: the sum of their slopes"


def test_weights_that_the_model_is_bound_to():
    model = nn.Sequential([nn.Dense(4), nn.PReLU()])
    variables = model.init(jax.random.key(0), X)
    (row,) = find_gates(lambda x: model.apply(variables, x), X).rows
    assert row.gate is None
    assert row.unresolved


class Nested(nn.Module):
    """Modules of one name within each other."""

    depth: int

    @nn.compact
    def __call__(self, x):
        """Apply it."""
        z = nn.LayerNorm()(nn.Dense(4)(x))
        return nn.relu(z) + (Nested(self.depth - 1, name="Nested_0")(x) if self.depth else 0)


def test_what_was_found_is_named_from_the_root():
    report = rows(Nested(2))
    for row in report:
        path = row.layer.replace("Dense_0", "LayerNorm_0")
        assert row.gate == Deferred(path, "relu")
        assert row.gate.absolute
    assert not Deferred("LayerNorm_0", "relu").absolute


class Outer(nn.Module):
    """A layer that is compiled on its own."""

    @nn.compact
    def __call__(self, x):
        """Apply it."""
        return nn.jit(nn.Dense)(4, name="dense")(x)


class Parents(nn.Module):
    """Two that are equal but for the name."""

    @nn.compact
    def __call__(self, x):
        """Apply it."""
        return Outer(name="b")(jnp.tanh(Outer(name="a")(x)))


def test_what_is_compiled_in_equal_parents_is_told_apart():
    assert {row.layer: row.gate for row in rows(Parents())} == {"a/dense": "tanh", "b/dense": None}
    variables = Parents().init(jax.random.key(0), X)
    seen = []
    neuronwise(Parents(), lambda path, layer: seen.append(path))(variables, X)
    assert set(seen) == {"a/dense", "b/dense"}


def test_a_named_layer_that_cannot_be_taken_over():
    model = nn.Conv(4, (3,), mask=jnp.ones((3, 4, 4)))
    variables = model.init(jax.random.key(0), X)

    def run(gates, mask):
        return neuronwise(model.clone(mask=mask), gates)(variables, X)

    with pytest.raises(ValueError, match="cannot take over this Conv: its mask is not a constant"):
        jax.eval_shape(lambda mask: run({"*": "relu"}, mask), model.mask)
    for gates in ("auto", {"*": LEAVE}):
        jax.eval_shape(lambda mask: run(gates, mask), model.mask)  # noqa: B023
    neuronwise(model, {"*": "relu"})(variables, X)


class Residual(nnx.Module):
    """A module that returns an activation, one that is deferred, and both halves of a unit."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.first, self.gate, self.up, self.down = (nnx.Linear(4, 4, rngs=rngs) for _ in range(4))
        self.norm = nnx.LayerNorm(4, rngs=rngs)

    def __call__(self, x):
        """Apply it."""
        h = nnx.relu(self.norm(self.first(x)))
        return nnx.relu(x + self.down(nnx.silu(self.gate(h)) * self.up(h)))


def test_copies_of_converted_models():
    model = Residual()
    rule = jaxnorm.Rule(gradient="preconditioned")
    report = jaxnorm.nnx.convert(model, example_input=X, rule=rule)
    assert len(report.deferred) == 4

    def gradient(model):
        return nnx.grad(lambda model: jnp.sum(model(X) ** 2))(model)

    expected = gradient(model)
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert type(other) is type(model)
        jax.tree.map(np.testing.assert_array_equal, gradient(other), expected)
        jaxnorm.nnx.revert(other)
        assert type(other) is Residual


def test_no_handle_outlives_its_trace():
    model = Residual()
    jaxnorm.nnx.convert(model, example_input=X, rule=jaxnorm.Rule(gradient="preconditioned"))
    with jax.checking_leaks():
        jax.eval_shape(lambda x: model.down(x), X)  # without the module that would tell it its gate
        jax.eval_shape(lambda x: model(x), X)
