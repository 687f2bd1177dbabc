"""The record of one layer: a pytree that survives whatever a checkpoint does to it."""

import copy
import pickle

import jax
import jax.numpy as jnp
import pytest
from flax import serialization

import jaxnorm
from jaxnorm.statistics.tracked import SCALARS, Statistics

RULE = jaxnorm.Rule(decay=0.5, shrinkage=3.0)


@pytest.fixture(scope="module")
def batch():
    """The statistics of one batch, of a layer whose kernel lies otherwise in Flax."""
    layer = jaxnorm.linen.DenseGeneral(3, batch_dims=0, gate="silu", rule=RULE)
    x = jax.random.normal(jax.random.key(1), (4, 6, 5))
    variables = layer.init(jax.random.key(0), x)
    stats = jaxnorm.linen.init_statistics(layer, variables, x)
    loss = lambda stats: layer.apply({**variables, "neuron_stats": stats}, x).sum()  # noqa: E731
    return jax.grad(loss)(stats)["statistics"]


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    return jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), a, b))


def test_scalars_have_names(batch):
    assert batch.scalars.shape == (len(SCALARS),)
    assert (batch.calls, batch.steps, batch.samples) == (1, 0, 6)
    assert (batch.shrinkage, batch.decay) == (3, 0.5)
    assert batch.with_scalars(steps=jnp.asarray(7.0)).steps == 7


def test_what_comes_once_for_every_call(batch):
    """Two calls are added up; what is no sum is then their mean."""
    twice = jax.tree.map(lambda a: 2 * a, batch)
    each = twice.per_call()
    assert (each.calls, each.samples) == (2, 12)
    assert (each.shrinkage, each.decay) == (3, 0.5)
    assert same(each.center, batch.center)
    assert same(each.first, twice.first)


def test_axes_are_static(batch):
    assert batch.kernel_axes == (1, 0, 2)
    moved = jax.tree.map(lambda a: a + 1, batch)
    assert (moved.kernel_axes, moved.bias_axes) == (batch.kernel_axes, batch.bias_axes)
    assert all(leaf.ndim for leaf in jax.tree.leaves(batch))


@pytest.mark.parametrize(
    "there_and_back",
    [
        copy.deepcopy,
        lambda record: pickle.loads(pickle.dumps(record)),
        lambda record: serialization.from_state_dict(record, serialization.to_state_dict(record)),
        lambda record: serialization.from_bytes(record, serialization.to_bytes(record)),
    ],
    ids=["copy", "pickle", "state_dict", "bytes"],
)
def test_there_and_back(batch, there_and_back):
    again = there_and_back(batch)
    assert isinstance(again, Statistics)
    assert same(again, batch)


def test_stacks(batch):
    """`update_statistics` of a stack is that of each."""
    stack = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), batch)
    assert (stack.stack, stack.shape) == (1, (2, *batch.shape))
    merged = jaxnorm.update_statistics(jax.tree.map(jnp.zeros_like, stack), stack)
    second = jax.tree.map(lambda a: a[1], stack)
    alone = jaxnorm.update_statistics(jax.tree.map(jnp.zeros_like, second), second)
    assert same(jax.tree.map(lambda a: a[1], merged), alone)
