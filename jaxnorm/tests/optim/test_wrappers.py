"""Wrappers of Optax around `in_neuron_coordinates`: they pass the statistics on."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxnorm
from jaxnorm.tests import nets
from jaxnorm.tests.nets import error, make, some
from parity_tests.tolerances import GATE, LOCK_STEP, SINGLE

STEPS = 4
ADAM = optax.adam(0.03)


def _by_layer(params):
    return {name: jax.tree.map(lambda _, n=name: n[-1], each) for name, each in params.items()}


def _wrappers():
    inside = jaxnorm.in_neuron_coordinates
    return {
        "inject_hyperparams inside": inside(
            optax.inject_hyperparams(optax.adam)(learning_rate=0.03)
        ),
        "inject_hyperparams outside": optax.inject_hyperparams(
            lambda learning_rate: inside(optax.adam(learning_rate))
        )(learning_rate=0.03),
        "schedule": inside(optax.adam(optax.constant_schedule(0.03))),
        "chain": optax.chain(optax.clip_by_global_norm(1e9), inside(ADAM)),
        "chain, scaled after": optax.chain(inside(optax.adam(0.06)), optax.scale(0.5)),
        "masked": optax.masked(inside(ADAM), lambda p: jax.tree.map(lambda _: True, p)),
        "apply_if_finite": optax.apply_if_finite(inside(ADAM), 3),
        "MultiSteps": optax.MultiSteps(inside(ADAM), 1),
        "named_chain": optax.named_chain(("one", inside(ADAM))),
        "partition": optax.partition(
            {"all": inside(ADAM)}, lambda p: jax.tree.map(lambda _: "all", p)
        ),
        "by layer": optax.partition({"0": inside(ADAM), "1": inside(ADAM)}, _by_layer),
    }


@pytest.mark.parametrize(
    "name",
    some(_wrappers(), "inject_hyperparams outside", "chain", "masked", "MultiSteps", "by layer"),
)
def test_wrappers_of_optax(name):
    """Wrappers that change nothing change nothing, and pass the statistics on."""
    x, y = nets.data()
    net = make("linen", nets.OF_THE_BATCH)
    state = jaxnorm.linen.TrainState.create(
        apply_fn=None, params=net.params, tx=_wrappers()[name], neuron_stats=net.stats
    )

    @jax.jit
    def step(state):
        grads, batch = net.grads(state.params, state.neuron_stats, x, y)
        return state.apply_gradients(grads=grads, neuron_stats=batch)

    for number, right in enumerate(itertools.islice(nets.reference(ADAM, x, y), STEPS), start=1):
        state = step(state)
        assert error(net.layers(state.params), right) <= LOCK_STEP
        assert state.step == number


def test_where_no_layer_is_among_the_gradients():
    """As in one of the parts of `optax.partition`: the step is the plain one."""
    x, y = nets.data()
    net = make("linen")
    grads, batch = jax.jit(net.grads)(net.params, net.stats, x, y)
    stats = jaxnorm.update_statistics(net.stats, batch)
    biases = jax.tree.map(lambda a: a.ndim == 1, net.params)
    inside, plain = (optax.masked(tx, biases) for tx in (jaxnorm.in_neuron_coordinates(ADAM), ADAM))
    state = inside.init(net.params)
    found, _ = inside.update(grads, state, net.params, neuron_stats=stats)
    expected, _ = plain.update(grads, plain.init(net.params), net.params)
    assert error(found, expected) <= GATE["float64"]


def test_branches_that_are_masked_as_a_whole():
    """Optax puts one placeholder in the place of a branch, Equinox None: as one for each leaf."""
    x, y = nets.data()
    net = make("linen")
    grads, batch = jax.jit(net.grads)(net.params, net.stats, x, y)
    stats, inside = jaxnorm.update_statistics(net.stats, batch), jaxnorm.in_neuron_coordinates(ADAM)
    branches = {"Dense_0": True, "Dense_1": False}
    leaves = {name: dict.fromkeys(net.params[name], each) for name, each in branches.items()}

    def step(tx, *trees):
        return tx.update(trees[0], tx.init(trees[1]), trees[1], neuron_stats=stats)[0]

    @jax.jit
    def steps(*trees):
        parts = {True: inside, False: optax.set_to_zero()}
        masks = [step(optax.masked(inside, mask), *trees) for mask in (branches, leaves)]
        labels = [step(optax.partition(parts, label), *trees) for label in (branches, leaves)]
        nothing = [step(optax.masked(inside, False), *trees), trees[0]]
        none = [{**tree, "Dense_1": None} for tree in trees]
        return masks, labels, nothing, [step(inside, *none), {**masks[1], "Dense_1": None}]

    for pair in steps(grads, net.params):
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12), *pair)


def test_flattened_gradients():
    """A tree that was flattened in front of it is none of another model."""
    net = make("linen")
    inside = jaxnorm.in_neuron_coordinates
    grads, stats = net.params, net.stats
    around = optax.flatten(inside(ADAM))
    with pytest.raises(ValueError, match=r"updates: got one array with 75 .*optax\.flatten\(inner"):
        around.update(grads, around.init(grads), grads, neuron_stats=stats)


def test_clipping_before_is_of_the_plain_gradient():
    x, y = nets.data()
    net = make("linen")
    grads, batch = jax.jit(net.grads)(net.params, net.stats, x, y)
    stats = jaxnorm.update_statistics(net.stats, batch)
    whole = jaxnorm.in_neuron_coordinates(optax.sgd(1.0))

    def step(tx):
        update = jax.jit(lambda grads: tx.update(grads, state, net.params, neuron_stats=stats)[0])
        state = tx.init(net.params)
        return update(grads)

    clipped = step(optax.chain(optax.clip_by_global_norm(0.5), whole))
    norm = optax.tree.norm(grads)
    assert error(clipped, jax.tree.map(lambda u: u * 0.5 / norm, step(whole))) <= GATE["float64"]


def test_multi_steps_takes_the_mean_gradient():
    """The statistics of the last micro-batch, or with decay of all of them."""
    x, y = nets.data()
    net = make("linen")
    tx = optax.MultiSteps(jaxnorm.in_neuron_coordinates(optax.sgd(1.0)), 2)
    params, stats, state = net.params, net.stats, tx.init(net.params)
    step = jax.jit(lambda *args: net.step(tx, *args))
    for half in (slice(12), slice(12, None)):
        state, params, stats = step(state, params, stats, x[half], y[half])
    plain = jaxnorm.in_neuron_coordinates(optax.sgd(0.5))
    grads, _ = jax.jit(net.grads)(net.params, net.stats, x, y)
    updates, _ = plain.update(grads, plain.init(net.params), net.params, neuron_stats=stats)
    # Optax keeps the mean in float32.
    assert error(params, optax.apply_updates(net.params, updates)) <= SINGLE
    assert float(stats["Dense_0"]["statistics"].samples) == 12


def test_apply_if_finite_and_a_bad_batch():
    """The step is skipped, and the next is what it would have been."""
    x, y = nets.data()
    net = make("linen")
    tx = optax.apply_if_finite(jaxnorm.in_neuron_coordinates(ADAM), 5)
    step = jax.jit(lambda args, x: net.step(tx, *args, x, y))
    good = step((tx.init(net.params), net.params, net.stats), x)
    after = step(good, x.at[0, 0].set(jnp.nan))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), after[1], good[1]))
    assert error(step(after, x)[1], step(good, x)[1]) <= LOCK_STEP
