"""Primitives between two layers: elementwise ones, those that order entries, unknown ones."""

import flax.linen as nn
import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxnorm.linen import find_gates

X = np.random.default_rng(0).normal(size=(12, 5)).astype("float32")


class Net(nn.Module):
    """A layer, what is done with its output, and another layer."""

    run: object

    @nn.compact
    def __call__(self, x):
        """Run it."""
        return nn.Dense(3)(self.run(nn.Dense(8, name="a")(x)))


def row(run):
    variables = jax.eval_shape(Net(run).init, jax.random.key(0), X)
    return find_gates(Net(run), variables, X)["a"]


def positive(z):
    """A mask that JAX cannot see into."""
    shape = jax.ShapeDtypeStruct(z.shape, bool)
    return lax.stop_gradient(jax.pure_callback(lambda a: np.asarray(a) > 0, shape, z))


FOUND = {
    "bessel": lambda z: lax.bessel_i1e(z),
    "digamma": lambda z: lax.digamma(abs(z) + 1),
    "beta": lambda z: jax.scipy.special.betainc(1.0, 2.0, jax.nn.sigmoid(z)),
    "gamma": lambda z: lax.igamma(jnp.ones_like(z), abs(z)),
}


@pytest.mark.parametrize("name", FOUND)
def test_elementwise_primitives_are_found(name):
    run = FOUND[name]
    found = row(run)
    assert (found.reason, found.unresolved) == ("direct", False)
    z = jnp.linspace(-2.0, 2.1, 42)
    slope, expected = (jax.vmap(jax.grad(f))(z) for f in (found.gate, run))
    np.testing.assert_allclose(slope, expected, rtol=1e-5, atol=1e-6)


MISSED = {
    "maxout": (lambda z: jnp.repeat(z.reshape(-1, 4, 2).max(-1), 2, 1), "reduce_max, which takes"),
    "sorted": (lambda z: jnp.sort(z.reshape(-1, 4, 2), -1).reshape(-1, 8), "sort, which takes"),
    "cummax": (lambda z: lax.cummax(z, 1), "cummax, which takes"),
    "largest": (lambda z: lax.top_k(z, 8)[0], "top_k, which takes"),
    "unknown": (lambda z: z * positive(z), "pure_callback, which is not known, follows"),
    "behind": (
        lambda z: jnp.where(positive(jnp.tanh(z)), jnp.tanh(z), 0),
        "pure_callback, which is not known, follows behind tanh",
    ),
}


@pytest.mark.parametrize("name", MISSED)
def test_what_is_no_elementwise_activation_is_unresolved(name):
    run, reason = MISSED[name]
    found = row(run)
    assert found.gate is None
    assert found.unresolved
    assert reason in found.reason


PASSIVE = {
    "sum": lambda z: lax.cumsum(z, 1),
    "fourier": lambda z: jnp.fft.irfft(jnp.fft.rfft(z), 8),
    "largest": lambda z: z / z.max(1, keepdims=True),
    "roll": lambda z: jnp.roll(z, 1, 1),
    "indices": lambda z: z[:, jnp.array([3, 1, 0, 2, 7, 6, 5, 4])],
}


@pytest.mark.parametrize("name", PASSIVE)
def test_what_is_known_to_be_no_activation_is_none(name):
    found = row(PASSIVE[name])
    assert not found.unresolved, found.reason
    assert found.reason.startswith("no activation follows")


def test_what_only_looks_on_is_no_consumer():
    def run(z):
        a = nn.relu(z)
        jax.experimental.io_callback(lambda a: None, None, a)
        jax.debug.callback(lambda a: None, a)
        return a

    assert row(run).gate == "relu"
