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


def record(seed):
    """The statistics of one batch, of a layer whose kernel lies otherwise in Flax."""
    layer = jaxnorm.linen.DenseGeneral(3, batch_dims=0, gate="silu", rule=RULE)
    x = jax.random.normal(jax.random.key(seed), (4, 6, 5))
    variables = layer.init(jax.random.key(0), x)
    stats = jaxnorm.linen.init_statistics(layer, variables, x)
    loss = lambda stats: layer.apply({**variables, "neuron_stats": stats}, x).sum()  # noqa: E731
    return jax.grad(loss)(stats)["statistics"]


@pytest.fixture(scope="module")
def batch():
    return record(1)


@pytest.fixture(scope="module")
def other():
    return record(2)


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    return jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), a, b))


def test_scalars_have_names(batch):
    assert batch.scalars.shape == (len(SCALARS),)
    assert (batch.calls, batch.steps, batch.samples) == (1, 0, 6)
    assert (batch.relative, batch.shrinkage, batch.decay) == (1, 3, 0.5)
    assert batch.with_scalars(steps=jnp.asarray(7.0)).steps == 7


def test_a_common_factor_is_none(batch):
    """Of a loss scale, or a mean over shards: whatever all of it is multiplied by."""
    for factor in (2.0**-16, 0.3, 1000.0):
        each = jax.tree.map(lambda a, factor=factor: factor * a, batch).counted()
        assert (each.calls, each.samples) == (1, pytest.approx(6, rel=1e-6))
        assert (each.shrinkage, each.decay) == (pytest.approx(3), pytest.approx(0.5))
        assert each.relative == pytest.approx(1)
        for name in ("center", "first", "second", "mass", "square"):
            assert jnp.allclose(getattr(each, name), getattr(batch, name), rtol=1e-5)


def test_calls_are_counted(batch, other):
    """Sums are added up, whatever else there is is their mean; and a mean of sums is one."""
    both = jax.tree.map(jnp.add, batch, other)
    for factor in (1.0, 0.5):
        each = jax.tree.map(lambda a, factor=factor: factor * a, both).counted()
        assert (each.calls, each.samples) == (1, 12)
        assert (each.relative, each.shrinkage, each.decay) == (1, 3, 0.5)
        assert jnp.allclose(each.center, (batch.center + other.center) / 2)
        assert jnp.allclose(each.first, both.first)


def test_steps_beyond_the_integers_of_float32():
    """Exactly, so that `statistics_every` goes on."""
    batch = record(1)
    zero = jax.tree.map(jnp.zeros_like, batch)
    step = jax.jit(lambda old: jaxnorm.update_statistics(old, batch))
    for last in (2**24 - 1, 2**24, 2**25 + 1, 2**20 - 1):
        rounds, rest = divmod(last, 2**20)
        numbers = {"rounds": jnp.asarray(float(rounds)), "steps": jnp.asarray(float(rest))}
        assert step(zero.with_scalars(**numbers)).steps == last + 1


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
