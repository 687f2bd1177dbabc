"""What does not learn does not move, nothing makes up for it; decay is of the originals."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import jaxnorm
from jaxnorm.tests import nets
from jaxnorm.tests.nets import error, make
from parity_tests.tolerances import GATE, SAME_STEP, VISIBLE

RATE = 0.1
ADAM = optax.adam(RATE)
IS_BIAS = {"Dense_0": {"kernel": False, "bias": True}, "Dense_1": {"kernel": False, "bias": True}}
KERNELS = jax.tree.map(lambda bias: not bias, IS_BIAS)
LABELS = jax.tree.map(lambda bias: "bias" if bias else "kernel", IS_BIAS)
ZERO = optax.set_to_zero()


@pytest.fixture(scope="module")
def net():
    return make("linen")


@pytest.fixture(scope="module")
def first(net):
    """(plain gradients, statistics) of the first step."""
    grads, batch = jax.jit(net.grads)(net.params, net.stats, *nets.data())
    return grads, jaxnorm.update_statistics(net.stats, batch)


def step(tx, net, grads, stats, params=None, count=1):
    """The last of so many updates with the same gradients."""
    params, state = net.params if params is None else params, tx.init(net.params)
    for _ in range(count):
        updates, state = tx.update(grads, state, params, neuron_stats=stats)
    return updates


def without_biases(net, grads, stats, inner=ADAM):
    """As if the layers had none that learn: they are not among the gradients."""
    tx = optax.partition({"kernel": jaxnorm.in_neuron_coordinates(inner), "bias": ZERO}, LABELS)
    return step(tx, net, grads, stats)


OFF = jnp.zeros((), bool)


def _zero_where_bias(updates, params):
    return jax.tree.map(lambda u, bias: jnp.where(OFF, u, 0) if bias else u, updates, IS_BIAS)


FROZEN_BIASES = {
    "stopped": lambda: jaxnorm.in_neuron_coordinates(ADAM),  # (with gradients of 0)
    "zero in front": lambda: optax.chain(
        optax.masked(ZERO, IS_BIAS), jaxnorm.in_neuron_coordinates(ADAM)
    ),
    "zero inside": lambda: jaxnorm.in_neuron_coordinates(
        optax.chain(ADAM, optax.masked(ZERO, IS_BIAS))
    ),
    "partition inside": lambda: jaxnorm.in_neuron_coordinates(
        optax.partition({"kernel": ADAM, "bias": ZERO}, LABELS)
    ),
    "a rate of 0 inside": lambda: jaxnorm.in_neuron_coordinates(
        optax.partition({"kernel": ADAM, "bias": optax.adam(0.0)}, LABELS)
    ),
    "zero in front, inside": lambda: jaxnorm.in_neuron_coordinates(
        optax.chain(optax.masked(ZERO, IS_BIAS), ADAM)
    ),
    "in a branch inside": lambda: jaxnorm.in_neuron_coordinates(
        optax.apply_if_finite(optax.chain(ADAM, optax.masked(ZERO, IS_BIAS)), 3)
    ),
    "clipped inside": lambda: jaxnorm.in_neuron_coordinates(
        optax.chain(ADAM, optax.masked(ZERO, IS_BIAS), optax.clip(10.0))
    ),
    "times an array inside": lambda: jaxnorm.in_neuron_coordinates(
        optax.chain(ADAM, optax.masked(optax.scale(jnp.zeros(())), IS_BIAS))
    ),
    "where an array says so inside": lambda: jaxnorm.in_neuron_coordinates(
        optax.chain(ADAM, optax.stateless(_zero_where_bias))
    ),
    "zero behind": lambda: optax.chain(
        jaxnorm.in_neuron_coordinates(ADAM, frozen=IS_BIAS), optax.masked(ZERO, IS_BIAS)
    ),
    "behind, by a function": lambda: optax.chain(
        jaxnorm.in_neuron_coordinates(ADAM, frozen=lambda params: IS_BIAS),
        optax.masked(ZERO, IS_BIAS),
    ),
}


@pytest.mark.parametrize("way", FROZEN_BIASES)
def test_biases_that_do_not_learn(net, first, way):
    """Nothing can absorb a mean: second moments about zero, and no bias moves."""
    grads, stats = first
    if way == "stopped":
        grads = jax.tree.map(lambda g, bias: 0 * g if bias else g, grads, IS_BIAS)
    updates = step(FROZEN_BIASES[way](), net, grads, stats)
    expected = without_biases(net, *first)
    for name in updates:
        assert error(updates[name]["kernel"], expected[name]["kernel"]) <= GATE["float64"]
        assert not updates[name]["bias"].any()


def test_what_a_state_holds_now(net, first):
    """A momentum that is zero in the first step, outside of `jax.jit`, says nothing of the next."""
    grads, stats = first
    inner = optax.chain(optax.trace(0.9), optax.scale(-RATE))
    tx = jaxnorm.in_neuron_coordinates(inner)
    none = jax.tree.map(jnp.zeros_like, grads)
    _, state = tx.update(none, tx.init(net.params), net.params, neuron_stats=stats)
    updates, _ = tx.update(grads, state, net.params, neuron_stats=stats)
    assert error(updates, step(jaxnorm.in_neuron_coordinates(inner), net, grads, stats)) == 0


def test_a_stopped_kernel(net, first):
    """It stays, and the bias has its plain gradient: nothing is there to make up for."""
    grads, stats = first
    x, y = nets.data()

    def loss(params, stats):
        params = {**params, "Dense_0": {**params["Dense_0"]}}
        params["Dense_0"]["kernel"] = lax.stop_gradient(params["Dense_0"]["kernel"])
        return net.loss(params, stats, x, y)

    stopped = jax.grad(loss)(net.params, net.stats)
    updates = step(jaxnorm.in_neuron_coordinates(optax.sgd(1.0)), net, stopped, stats)
    assert not updates["Dense_0"]["kernel"].any()
    assert error(updates["Dense_0"]["bias"], -grads["Dense_0"]["bias"]) <= GATE["float64"]


@pytest.mark.parametrize("inner", [optax.sgd(RATE, momentum=0.9), ADAM], ids=["momentum", "adam"])
def test_entries_that_are_masked(net, first, inner):
    """A pruned row and single entries stay; the others are as if those were no inputs at all."""
    grads, stats = first
    mask = np.ones(grads["Dense_0"]["kernel"].shape)
    mask[1], mask[3, ::2] = 0, 0
    masked = jax.tree.map(lambda g: g, grads)
    masked["Dense_0"]["kernel"] = grads["Dense_0"]["kernel"] * mask
    tx = jaxnorm.in_neuron_coordinates(inner)
    updates, whole = (step(tx, net, each, stats, count=3) for each in (masked, grads))
    kernel, expected = updates["Dense_0"]["kernel"], whole["Dense_0"]["kernel"]
    assert not kernel[mask == 0].any()
    assert error(kernel, expected * mask) <= GATE["float64"]
    means = jaxnorm.statistics.merging.moments(stats["Dense_0"]["statistics"]).mean
    moved = whole["Dense_0"]["bias"] + jnp.sum(means * expected * (1 - mask), 0)
    assert error(updates["Dense_0"]["bias"], moved) <= SAME_STEP


def test_entries_said_to_be_frozen(net, first):
    """By arrays of bools, of what something behind masks."""
    grads, stats = first
    off = jax.tree.map(lambda g: jnp.zeros(g.shape, bool), grads)
    off["Dense_0"]["kernel"] = off["Dense_0"]["kernel"].at[2].set(True)
    updates = step(jaxnorm.in_neuron_coordinates(ADAM, frozen=off), net, grads, stats)
    masked = jax.tree.map(lambda g, off: jnp.where(off, 0, g), grads, off)
    expected = step(jaxnorm.in_neuron_coordinates(ADAM), net, masked, stats)
    assert error(updates, expected) == 0
    assert not updates["Dense_0"]["kernel"][2].any()


def test_a_layer_that_is_not_reached():
    """Two heads, one used, under jit: the other and its moments stay, and it is counted."""
    x, y = nets.data()
    net = make("linen")
    params = {**net.params, "other": net.params["Dense_1"]}
    stats = {**net.stats, "other": net.stats["Dense_1"]}
    for inner, left in ((ADAM, 1.0), (optax.adamw(RATE, weight_decay=0.5), 0.95**2)):
        tx = jaxnorm.in_neuron_coordinates(inner)

        def loss(params, stats):
            return net.loss(params, stats, x, y)

        @jax.jit
        def run(params, stats, state, tx=tx, loss=loss):
            grads, batch = jax.grad(loss, (0, 1))(params, stats)
            stats = jaxnorm.update_statistics(stats, batch)
            updates, state = tx.update(grads, state, params, neuron_stats=stats)
            return optax.apply_updates(params, updates), stats, state

        now, known, state = params, stats, tx.init(params)
        for _ in range(2):
            now, known, state = run(now, known, state)
        assert jaxnorm.skipped_steps(known) == {"Dense_0": 0, "Dense_1": 0, "other": 2}
        expected = jax.tree.map(lambda p, left=left: p * left, params["other"])
        assert error(now["other"], expected) <= GATE["float64"]
        assert error(now["Dense_1"], params["Dense_1"]) > VISIBLE
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(now))


DECAYS = {
    "adamw": (lambda wd, mask: optax.adamw(RATE, weight_decay=wd, mask=mask), RATE),
    "lion": (lambda wd, mask: optax.lion(RATE, weight_decay=wd, mask=mask), RATE),
    "behind momentum": (
        lambda wd, mask: optax.chain(
            optax.trace(0.9), optax.add_decayed_weights(wd, mask), optax.scale(-RATE)
        ),
        RATE,
    ),
    "scheduled": (
        lambda wd, mask: optax.adamw(
            optax.linear_schedule(RATE, 0, 10), weight_decay=wd, mask=mask
        ),
        RATE,
    ),
}


@pytest.mark.parametrize("name", DECAYS)
@pytest.mark.parametrize("of", ["kernels", "all", "biases"])
def test_decay_is_that_of_the_originals(net, first, name, of):
    """Exactly, and of those that are asked for: the bias does not make up for it."""
    grads, stats = first
    params = jax.tree.map(lambda p: p + 0.5, net.params)
    mask = {"kernels": KERNELS, "all": None, "biases": IS_BIAS}[of]
    make_inner, rate = DECAYS[name]
    with_decay, without = (
        step(jaxnorm.in_neuron_coordinates(make_inner(wd, mask)), net, grads, stats, params)
        for wd in (0.5, 0.0)
    )
    decayed = jax.tree.map(lambda a, b: a - b, with_decay, without)
    asked = mask or jax.tree.map(lambda _: True, IS_BIAS)
    expected = jax.tree.map(lambda p, on: -rate * 0.5 * p * on, params, asked)
    # Lion's constants and a schedule's rate are of float32.
    gate = {"lion": 1e-6, "scheduled": 1e-8}.get(name, SAME_STEP)
    for name in decayed:
        for leaf in ("kernel", "bias"):
            assert jnp.abs(decayed[name][leaf] - expected[name][leaf]).max() <= gate


def test_decay_with_a_gradient_of_zero(net, first):
    """The usual two groups."""
    grads, stats = first
    params = jax.tree.map(lambda p: 0 * p + 0.5, net.params)
    inner = optax.adamw(RATE, weight_decay=0.5, mask=KERNELS)
    updates = step(
        jaxnorm.in_neuron_coordinates(inner),
        net,
        jax.tree.map(jnp.zeros_like, grads),
        stats,
        params,
    )
    for name in updates:
        assert not updates[name]["bias"].any()
        assert jnp.allclose(updates[name]["kernel"], -RATE * 0.5 * 0.5, rtol=1e-12)


def test_steps_that_depend_on_parameters_otherwise(net, first):
    """The trust ratio of lamb is that in the coordinates: no part of its step is a decay."""
    grads, stats = first
    tx = jaxnorm.in_neuron_coordinates(optax.lamb(RATE, weight_decay=0.1))
    updates = step(tx, net, grads, stats)
    moments = jaxnorm.statistics.merging.moments(stats["Dense_0"]["statistics"])
    moved = jnp.sum(moments.mean * updates["Dense_0"]["kernel"], 0)
    inside = jnp.linalg.norm(updates["Dense_0"]["bias"] + moved)
    bias = net.params["Dense_0"]["bias"] + jnp.sum(
        moments.mean * net.params["Dense_0"]["kernel"], 0
    )
    assert jnp.allclose(inside, RATE * jnp.linalg.norm(bias), rtol=1e-6)
