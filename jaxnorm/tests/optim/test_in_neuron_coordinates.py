"""`in_neuron_coordinates`: any inner optimizer, and what Optax expects of a transformation."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from flax import nnx

import jaxnorm
from jaxnorm import Rule
from jaxnorm.tests import nets
from jaxnorm.tests.nets import KINDS, error, make, some
from parity_tests.oracle import Knobs
from parity_tests.tolerances import (
    GATE,
    LOCK_STEP,
    LOW_PRECISION_FACTOR,
    ROUNDING,
    SAME_STEP,
    VISIBLE,
)

#: A few steps of an optimizer that divides by roots of squares: errors of 1e-16 grow.
STEPS = 4
DOUBLE = {"param_dtype": jnp.float64}

ADAM = optax.adam(0.03)
INNER = {
    "sgd": optax.sgd(0.01),
    "momentum": optax.sgd(0.01, 0.9),
    "nesterov": optax.sgd(0.01, 0.9, nesterov=True),
    "adam": ADAM,
    "adamw": optax.adamw(0.03, weight_decay=0.1),
    "lion": optax.lion(0.01),
    "adafactor": optax.adafactor(0.03, min_dim_size_to_factor=2),
    "muon": optax.contrib.muon(0.03),
    "rmsprop": optax.rmsprop(0.01, momentum=0.5),
    "polyak_sgd": optax.polyak_sgd(0.5),
    "lamb": optax.lamb(0.03, weight_decay=0.1),
    "clipped": optax.chain(optax.clip_by_global_norm(1.0), ADAM),
}


def trained(net, tx, x, y, steps=STEPS, **extra):
    """The layers after each step."""

    @jax.jit
    def step(state, params, stats):
        grads, batch = net.grads(params, stats, x, y)
        stats = jaxnorm.update_statistics(stats, batch)
        more = {name: of(params, stats) for name, of in extra.items()}
        updates, state = tx.update(grads, state, params, neuron_stats=stats, **more)
        return state, optax.apply_updates(params, updates), stats

    params, stats, state = net.params, net.stats, tx.init(net.params)
    for _ in range(steps):
        state, params, stats = step(state, params, stats)
        yield net.layers(params)


@pytest.mark.parametrize("name", some(INNER, "momentum", "adamw", "muon", "polyak_sgd"))
def test_every_inner_optimizer(name):
    x, y = nets.data()
    net = make("linen", nets.OF_THE_BATCH)
    extra = {}
    if name == "polyak_sgd":
        extra = {"value": lambda params, stats: net.loss(params, stats, x, y)}
    tx = jaxnorm.in_neuron_coordinates(INNER[name])
    expected = nets.reference(INNER[name], x, y, extra=bool(extra))
    for actual, right in zip(trained(net, tx, x, y, **extra), expected, strict=False):
        assert error(actual, right) <= LOCK_STEP
    assert error(actual, nets.initial()) > VISIBLE


@pytest.mark.parametrize("kind", KINDS[1:])
def test_every_kind_of_model(kind):
    x, y = nets.data()
    net, tx = make(kind, nets.OF_THE_BATCH), jaxnorm.in_neuron_coordinates(INNER["adamw"])
    expected = nets.reference(INNER["adamw"], x, y)
    for actual, right in zip(trained(net, tx, x, y), expected, strict=False):
        assert error(actual, right) <= LOCK_STEP


@pytest.mark.parametrize("kind", some(KINDS, "linen converted", "nnx"))
def test_sgd_is_the_stateless_form(kind):
    x, y = nets.data()
    stateless = _stateless(x, y)
    (actual,) = trained(make(kind), jaxnorm.in_neuron_coordinates(optax.sgd(0.1)), x, y, steps=1)
    assert error(actual, stateless) <= GATE["float64"]


def _stateless(x, y):
    """One step of plain SGD on the preconditioned gradient."""
    model = nets.Linen(jaxnorm.linen, DOUBLE | {"rule": Rule(gradient="preconditioned")})
    params = nets.named(nets.initial())
    loss = lambda p: jnp.sum((model.apply({"params": p}, x) - y) ** 2) / 2  # noqa: E731
    grads = jax.jit(jax.grad(loss))(params)
    return nets.unnamed(jax.tree.map(lambda p, g: p - 0.1 * g, params, grads))


@pytest.mark.parametrize(
    "knobs", [{"scale": "layer"}, {"scale": "none"}, {"weighting": "uniform"}, {"shrinkage": 0.0}]
)
def test_every_kind_of_moments(knobs):
    x, y = nets.data()
    net, inner = make("linen", Rule(**knobs, smoothing=0.0)), INNER["adamw"]
    expected = nets.reference(inner, x, y, knobs=Knobs(**knobs))
    tx = jaxnorm.in_neuron_coordinates(inner)
    for actual, right in zip(trained(net, tx, x, y), expected, strict=False):
        assert error(actual, right) <= LOCK_STEP


def test_step_size_is_a_rate_of_the_kernel():
    """With SGD, one for each neuron: the mean of its sigma^2."""
    x, y = nets.data()
    tx = jaxnorm.in_neuron_coordinates(optax.sgd(0.1))
    (plain,), (absolute,) = (
        trained(make("linen", Rule(step_size=size)), tx, x, y, steps=1)
        for size in ("plain", "standardized")
    )
    knobs = Knobs(step_size="standardized")
    found = nets.moments(nets.initial(), x, knobs)
    for new, standardized, old, at in zip(plain, absolute, nets.initial(), found, strict=True):
        rate = np.mean(at.sigma**2, axis=0, keepdims=True)
        steps = new[0] - old[0], standardized[0] - old[0]
        assert np.abs(rate - 1).min() > 0.1
        assert error(steps[0], rate * steps[1]) <= SAME_STEP
        # What the kernel moves a mean by, the bias makes up for; its own step is the same.
        moved = [
            layer[1] + jnp.sum(at.mean * step, 0)
            for layer, step in zip((new, standardized), steps, strict=True)
        ]
        assert error(*moved) <= SAME_STEP


@pytest.mark.parametrize(
    ("kind", "inner"),
    [
        ("linen", optax.adamw),
        ("nnx converted", optax.lion),
        pytest.param("nnx", optax.contrib.muon, marks=pytest.mark.slow),
    ],
)
def test_decoupled_decay_is_that_of_the_original_parameters(kind, inner):
    """Without a gradient everything shrinks by exactly 1 - rate * decay, biases too."""
    x, y = nets.data()
    net = make(kind, Rule())
    tx = jaxnorm.in_neuron_coordinates(inner(0.1, weight_decay=0.2))

    @jax.jit
    def step(params, stats):
        grads, batch = net.grads(params, stats, x, y)
        stats = jaxnorm.update_statistics(stats, batch)
        grads = jax.tree.map(jnp.zeros_like, grads)
        return tx.update(grads, tx.init(params), params, neuron_stats=stats)[0]

    updates = net.layers(step(net.params, net.stats))
    for (kernel, bias), (w, b) in zip(updates, net.layers(net.params), strict=True):
        np.testing.assert_allclose(kernel, -0.02 * w, rtol=GATE["float64"], atol=0)
        if inner is not optax.contrib.muon:  # whose biases go to Adam without decay
            np.testing.assert_allclose(bias, -0.02 * b, rtol=0, atol=1e-14)


def test_extra_arguments_are_passed_on_or_ignored():
    x, y = nets.data()
    net, seen = make("linen"), []

    def update(updates, state, params=None, *, value=None, **extra):
        seen.append((value, extra))
        return updates, state

    inner = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    grads, batch = jax.jit(net.grads)(net.params, net.stats, x, y)
    stats = jax.jit(jaxnorm.update_statistics)(net.stats, batch)
    for inside in (inner, optax.sgd(0.1)):
        tx = jaxnorm.in_neuron_coordinates(inside)
        kwargs = {"neuron_stats": stats, "value": 3.0, "else_": 4.0}
        tx.update(grads, tx.init(net.params), net.params, **kwargs)
    # (Once, and where its program is read.)
    assert seen
    assert all(each == (3.0, {"else_": 4.0}) for each in seen)


@pytest.mark.parametrize("kind", some(KINDS, "linen", "nnx converted"))
def test_compiled_once_and_donated(kind):
    x, y = nets.data()
    net, tx = make(kind), jaxnorm.in_neuron_coordinates(ADAM)
    traced = []

    def once(*args):
        traced.append(1)
        return net.step(tx, *args, x, y)

    step = jax.jit(once, donate_argnums=(0, 1, 2))
    args = jax.tree.map(jnp.array, (tx.init(net.params), net.params, net.stats))
    for _ in range(3):
        args = step(*args)
    assert len(traced) == 1
    *_, last = trained(net, tx, x, y, steps=3)
    assert error(net.layers(args[1]), last) <= LOCK_STEP


@pytest.mark.parametrize("dtype", some(["bfloat16", "float16", "float32"], "float16"))
@pytest.mark.parametrize("kind", some(["linen", "nnx"], "linen"))
def test_dtypes_are_kept(kind, dtype):
    x, y = nets.data(dtype=dtype)
    net, tx = make(kind, dtype=dtype), jaxnorm.in_neuron_coordinates(optax.adamw(0.01))
    start = (tx.init(net.params), net.params, net.stats)
    state, params, stats = jax.jit(lambda *args: net.step(tx, *args, x, y))(*start)
    kinds = lambda tree: jax.tree.map(lambda a: (a.dtype, a.shape, a.weak_type), tree)  # noqa: E731
    assert kinds(params) == kinds(net.params)
    assert kinds(stats) == kinds(net.stats)
    assert kinds(state) == kinds(tx.init(net.params))
    assert {a.dtype for a in jax.tree.leaves(stats)} == {jnp.promote_types(dtype, jnp.float32)}
    assert all(bool(jnp.isfinite(a).all()) for a in jax.tree.leaves(params))


@pytest.mark.parametrize("dtype", some(["bfloat16", "float16"], "bfloat16"))
def test_low_precision_costs_what_the_gradient_has_lost(dtype):
    """Not worse than twice Flax's gradient of that dtype, put into the coordinates exactly."""
    x, y = nets.data(dtype=dtype)
    net, tx = make("linen", dtype=dtype), jaxnorm.in_neuron_coordinates(optax.sgd(1.0))
    wide = make("linen")
    params, *xs = jax.tree.map(lambda a: a.astype(float), (net.params, x, y))
    exact, batch = jax.jit(wide.grads)(params, wide.stats, *xs)
    rounded, low = jax.jit(net.grads)(net.params, net.stats, x, y)

    def step(grads, stats):
        return tx.update(grads, tx.init(params), params, neuron_stats=stats)[0]

    batch, low = map(jaxnorm.update_statistics, (wide.stats, net.stats), (batch, low))
    expected = step(exact, batch)
    textbook = error(step(jax.tree.map(lambda a: a.astype(float), rounded), batch), expected)
    actual, _ = tx.update(rounded, tx.init(net.params), net.params, neuron_stats=low)
    assert error(actual, expected) <= LOW_PRECISION_FACTOR * textbook + ROUNDING[dtype]


def test_under_cond_scan_and_vmap():
    x, y = nets.data()
    net, tx = make("linen", Rule(decay=0.5)), jaxnorm.in_neuron_coordinates(ADAM)
    start = (tx.init(net.params), net.params, net.stats)
    step, expected = jax.jit(lambda *args: net.step(tx, *args, x, y)), start
    for _ in range(3):
        expected = step(*expected)

    def body(carry, take):
        new = jax.lax.cond(take, lambda c: net.step(tx, *c, x, y), lambda c: c, carry)
        return new, None

    flags = jnp.array([True, False, True, True])
    scanned, _ = jax.jit(lambda carry: jax.lax.scan(body, carry, flags))(start)
    assert error(scanned[1], expected[1]) <= LOCK_STEP
    assert scanned[2]["Dense_0"]["statistics"].steps == 3

    seeds = jnp.array([1.0, 1.5])
    params = jax.vmap(lambda c: jax.tree.map(lambda a: a * c, net.params))(seeds)

    def run(params):
        carry = (tx.init(params), params, net.stats)
        each = lambda carry, _: (net.step(tx, *carry, x, y), None)  # noqa: E731
        return jax.lax.scan(each, carry, None, 3)[0][1]

    mapped = jax.jit(jax.vmap(run))(params)
    one, last = (jax.tree.map(lambda a: a[1], tree) for tree in (params, mapped))
    assert error(last, jax.jit(run)(one)) <= LOCK_STEP

    # Only the gradient mapped, the rest on stacked trees: the same.
    sgd = jaxnorm.in_neuron_coordinates(optax.sgd(0.1))

    @jax.jit
    def outside(params):
        stats = jax.tree.map(lambda a: jnp.stack([a, a]), net.stats)
        grads, batch = jax.vmap(lambda p, s: net.grads(p, s, x, y))(params, stats)
        stats = jaxnorm.update_statistics(stats, batch)
        updates, _ = sgd.update(grads, sgd.init(params), params, neuron_stats=stats)
        return optax.apply_updates(params, updates)

    def one(params):
        return net.step(sgd, sgd.init(params), params, net.stats, x, y)[1]

    assert error(outside(params), jax.jit(jax.vmap(one))(params)) <= LOCK_STEP


@pytest.mark.parametrize("kind", some(["nnx", "nnx converted"], "nnx converted"))
def test_the_optimizer_of_nnx(kind):
    x, y = nets.data()
    model, inner = nets.nnx_model(kind, nets.OF_THE_BATCH), INNER["adamw"]
    optimizer = jaxnorm.nnx.Optimizer(model, jaxnorm.in_neuron_coordinates(inner))
    by = nnx.DiffState(0, jaxnorm.nnx.PARAMS_AND_STATISTICS)

    @nnx.jit
    def step(model, optimizer):
        grads = nnx.grad(lambda model: jnp.sum((model(x) - y) ** 2) / 2, argnums=by)(model)
        optimizer.update(model, grads)

    for right in itertools.islice(nets.reference(inner, x, y), STEPS):
        step(model, optimizer)
        actual = [(layer.kernel[...], layer.bias[...]) for layer in model.layers]
        assert error(actual, right) <= LOCK_STEP


def test_adam_in_the_coordinates_trains_where_the_stateless_form_diverges():
    """Features with mean 20 and standard deviation 5, a linear target, small first weights.

    One problem on which the two differ, not a comparison: from large first weights, whose bias in
    the coordinates is far from where it has to go, Adam is slower inside than outside.
    """
    rng = np.random.default_rng(3)
    x = 20 + 5 * rng.standard_normal((256, 5))
    y = (x - 20) / 5 @ rng.standard_normal((5, 3))
    net, adam = make("linen"), optax.adam(0.01)
    start = jax.tree.map(lambda p: 0.05 * p, net.params)
    model = nets.Linen(jaxnorm.linen, DOUBLE | {"rule": Rule(gradient="preconditioned")})

    def loss(params, stats=None, apply=net.apply):
        return jnp.mean((apply(params, stats, x) - y) ** 2)

    def stateless(carry, _):
        params, state = carry
        apply = lambda params, _, x: model.apply({"params": params}, x)  # noqa: E731
        updates, state = adam.update(jax.grad(loss)(params, apply=apply), state)
        return (optax.apply_updates(params, updates), state), loss(params)

    def wrapped(carry, _, tx=jaxnorm.in_neuron_coordinates(adam)):
        params, state, stats = carry
        grads, batch = jax.grad(loss, (0, 1))(params, stats)
        stats = jaxnorm.update_statistics(stats, batch)
        updates, state = tx.update(grads, state, params, neuron_stats=stats)
        return (optax.apply_updates(params, updates), state, stats), loss(params)

    state = adam.init(start)
    _, bad = jax.lax.scan(stateless, (start, state), length=300)
    state = jaxnorm.in_neuron_coordinates(adam).init(start)
    _, good = jax.lax.scan(wrapped, (start, state, net.stats), length=300)
    assert good[-1] < 1e-3 * good[0]
    assert good.max() <= good[0]
    assert not bad[-1] < 5 * bad[0]  # or NaN
