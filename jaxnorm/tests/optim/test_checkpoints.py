"""State that survives: a run that was saved and restored goes on bit for bit."""

import functools

import flax.linen
import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx, serialization

import jaxnorm
from jaxnorm import Rule
from jaxnorm.tests import nets
from jaxnorm.tests.nets import make

FURTHER = 5


NET = functools.cache(lambda: make("linen", Rule(decay=0.9)))
TX = optax.chain(optax.clip_by_global_norm(5.0), jaxnorm.in_neuron_coordinates(optax.adamw(0.03)))


def same(a, b):
    equal = jax.tree.map(lambda a, b: a.dtype == b.dtype and bool((a == b).all()), a, b)
    return jax.tree.all(equal)


def linen_state(params=None, stats=None):
    net = NET()
    return jaxnorm.linen.TrainState.create(
        apply_fn=net.apply,
        params=net.params if params is None else params,
        tx=TX,
        neuron_stats=net.stats if stats is None else stats,
    )


@jax.jit
def linen_step(state):
    grads, batch = NET().grads(state.params, state.neuron_stats, *nets.data())
    return state.apply_gradients(grads=grads, neuron_stats=batch)


def linen_run(state, steps):
    for _ in range(steps):
        state = linen_step(state)
    return state


def save(path, tree):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)


def restore(path, like):
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path, like)


def test_linen_resumes_bit_for_bit(tmp_path):
    middle = linen_run(linen_state(), 3)
    save(tmp_path / "state", middle)
    expected = linen_run(middle, FURTHER)
    fresh = linen_state()
    restored = restore(tmp_path / "state", jax.eval_shape(lambda: fresh))
    assert same(jax.tree.leaves(restored), jax.tree.leaves(middle))
    again = linen_run(restored, FURTHER)
    assert same(jax.tree.leaves(again), jax.tree.leaves(expected))
    assert int(again.step) == 3 + FURTHER
    # What was not restored would be seen.
    for part in ("neuron_stats", "opt_state"):
        blank = restored.replace(**{part: getattr(fresh, part)})
        assert not same(linen_run(blank, FURTHER).params, expected.params)


def test_linen_resumes_from_bytes():
    """`flax.serialization` too."""
    middle = linen_run(linen_state(), 2)
    restored = serialization.from_bytes(linen_state(), serialization.to_bytes(middle))
    again, expected = linen_run(restored, FURTHER), linen_run(middle, FURTHER)
    assert same(jax.tree.leaves(again), jax.tree.leaves(expected))


def nnx_pair(kind="nnx", rule=Rule(decay=0.9)):
    model = nets.nnx_model(kind, rule)
    return model, jaxnorm.nnx.Optimizer(model, TX)


@nnx.jit
def nnx_step(model, optimizer):
    x, y = nets.data()
    by = nnx.DiffState(0, jaxnorm.nnx.PARAMS_AND_STATISTICS)
    grads = nnx.grad(lambda model: jnp.sum((model(x) - y) ** 2), argnums=by)(model)
    optimizer.update(model, grads)


def nnx_run(model, optimizer, steps):
    for _ in range(steps):
        nnx_step(model, optimizer)


@pytest.mark.parametrize("kind", ["nnx converted", pytest.param("nnx", marks=pytest.mark.slow)])
def test_nnx_resumes_bit_for_bit(kind, tmp_path):
    pair = nnx_pair(kind)
    nnx_run(*pair, 3)
    save(tmp_path / "state", nnx.to_pure_dict(nnx.state(pair)))
    nnx_run(*pair, FURTHER)
    fresh = nnx_pair(kind)
    state = nnx.state(fresh)
    nnx.replace_by_pure_dict(state, restore(tmp_path / "state", nnx.to_pure_dict(state)))
    nnx.update(fresh, state)
    nnx_run(*fresh, FURTHER)
    assert same(jax.tree.leaves(nnx.state(fresh)), jax.tree.leaves(nnx.state(pair)))


def test_a_plain_checkpoint_starts_cleanly(tmp_path):
    """Parameters of the framework alone; the statistics begin anew."""
    plain = {"params": nets.named(nets.initial())}
    save(tmp_path / "plain", plain)
    restored = restore(tmp_path / "plain", plain)["params"]
    model = nets.Linen(jaxnorm.linen, {"param_dtype": jnp.float64, "rule": Rule(decay=0.9)})
    stats = jaxnorm.linen.init_statistics(model, {"params": restored}, nets.data()[0])
    actual, expected = linen_run(linen_state(restored, stats), 2), linen_run(linen_state(), 2)
    assert same(jax.tree.leaves(actual), jax.tree.leaves(expected))


def test_parameters_of_ours_are_those_of_the_framework():
    """The statistics are beside them."""
    state = linen_run(linen_state(), 1)
    reference = nets.Linen(flax.linen, {"param_dtype": jnp.float64}, ours=False)
    x, _ = nets.data()
    out = reference.apply({"params": state.params}, x)
    assert bool((out == NET().apply(state.params, state.neuron_stats, x)).all())


def test_statistics_of_another_model_are_refused(tmp_path):
    """By the layer, whatever the checkpointer was told to expect."""
    other = make("linen", Rule(decay=0.9, scale="layer"))
    save(tmp_path / "stats", other.stats)
    for like in (other.stats, NET().stats):
        stats = restore(tmp_path / "stats", like)
        with pytest.raises(ValueError, match=r"neuron_stats: got .*, expected .*init_statistics"):
            linen_step(linen_state(stats=stats))


class Plain(flax.linen.Module):
    """Of Flax's layers."""

    @flax.linen.compact
    def __call__(self, x):
        """Run it."""
        return flax.linen.Dense(3)(flax.linen.silu(flax.linen.Dense(8)(x)))


@pytest.mark.parametrize("way", ["orbax", "bytes"])
@pytest.mark.parametrize("kind", ["state", "optax"])
def test_what_prepare_makes_resumes_bit_for_bit(kind, way, tmp_path):
    """A `TrainState`, and parameters with an optimizer's state, which has the statistics."""
    model, (x, y) = Plain(), nets.data()
    params = model.init(jax.random.key(0), x)
    if kind == "state":
        start = jaxnorm.linen.TrainState.prepare(model, params, optax.adamw(0.03), x)
        apply = start.apply_fn
    else:
        apply, tx = jaxnorm.linen.prepare(model, params, optax.adamw(0.03), x)
        start = (params, tx.init(params))

    def loss(params):
        return jnp.sum((apply(params, x) - y) ** 2)

    @jax.jit
    def step(at):
        if kind == "state":
            return at.apply_gradients(grads=at.grad(loss)(at.params))
        params, state = at
        updates, state = tx.update(jaxnorm.linen.grad(loss, state)(params), state, params)
        return optax.apply_updates(params, updates), state

    middle = step(step(start))
    if way == "orbax":
        save(tmp_path / "state", middle)
        restored = restore(tmp_path / "state", jax.eval_shape(lambda: start))
    else:
        restored = serialization.from_bytes(start, serialization.to_bytes(middle))
    again, expected = step(step(restored)), step(step(middle))
    assert same(jax.tree.leaves(again), jax.tree.leaves(expected))
    assert not same(jax.tree.leaves(step(step(start))), jax.tree.leaves(expected))
