"""However a batch is cut, mapped, scaled or averaged: the step is that of the whole batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.dynamic_scale import DynamicScale

import jaxnorm
from jaxnorm import Rule
from jaxnorm.tests import nets
from jaxnorm.tests.nets import error, make
from parity_tests.tolerances import SAME_STEP

TX = jaxnorm.in_neuron_coordinates(optax.adam(0.1))
update = jax.jit(jaxnorm.update_statistics)
moments = jax.jit(jaxnorm.statistics.merging.moments)
PARTS = 4
RULES = {
    "default": Rule(),
    "remembered": Rule(decay=0.9),
    "error": Rule(weighting="error"),
    "layer": Rule(scale="layer", weighting="signed"),
}


def loss(net, params, stats, x, y):
    return jnp.mean((net.apply(params, stats, x) - y) ** 2)


def grads(net, params, stats, x, y):
    return jax.grad(lambda p, s: loss(net, p, s, x, y), (0, 1))(params, stats)


def cut(array, parts=PARTS):
    return array.reshape(parts, -1, array.shape[-1])


def outside(apply):
    """The gradient of a mean over what `apply` maps."""

    def run(net, params, stats, x, y):
        def mapped(params, stats):
            return jnp.mean((apply(lambda row: net.apply(params, stats, row))(x) - y) ** 2)

        return jax.grad(mapped, (0, 1))(params, stats)

    return run


def over_parts(combine):
    """The gradients of parts, which are then combined."""

    def run(net, params, stats, x, y):
        every = [grads(net, params, stats, *part) for part in zip(cut(x), cut(y), strict=True)]
        return combine(every)

    return run


def total(trees):
    return jax.tree.map(lambda *leaves: sum(leaves), *trees)


def mean(trees):
    return jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *trees)


def separately(trees):
    """The mean of the gradients, the sum of the statistics."""
    return mean([tree[0] for tree in trees]), total([tree[1] for tree in trees])


def collective(reduce, parts):
    def run(net, params, stats, x, y):
        part = lambda x, y: reduce(grads(net, params, stats, x, y), "parts")  # noqa: E731
        every = jax.vmap(part, axis_name="parts")(cut(x, parts), cut(y, parts))
        return jax.tree.map(lambda leaf: leaf[0], every)

    return run


def per_example(net, params, stats, x, y):
    """The gradient of each example, then their mean, as where each is clipped."""
    each = jax.vmap(lambda x, y: grads(net, params, stats, x[None], y[None]))(x, y)
    return jax.tree.map(lambda leaf: leaf.mean(0), each)


def scanned(net, params, stats, x, y):
    def run(params, stats):
        def body(carry, part):
            return carry + loss(net, params, stats, *part) / PARTS, None

        return jax.lax.scan(body, 0.0, (cut(x), cut(y)))[0]

    return jax.grad(run, (0, 1))(params, stats)


def scaled(net, params, stats, x, y):
    run = lambda p, s: loss(net, p, s, x, y)  # noqa: E731
    _, finite, _, found = DynamicScale().value_and_grad(run, argnums=(0, 1))(params, stats)
    return jax.tree.map(lambda leaf: jnp.where(finite, leaf, jnp.nan), found)


def unequal(weigh):
    """The gradients of parts of 4 and 20 samples, each a mean, weighted by their share."""

    def run(net, params, stats, x, y):
        found = []
        for part in (slice(4), slice(4, None)):
            share = len(x[part]) / len(x)
            found.append(weigh(net, params, stats, x[part], y[part], share))
        return total(found)

    return run


def in_the_loss(net, params, stats, x, y, share):
    return jax.grad(lambda p, s: share * loss(net, p, s, x, y), (0, 1))(params, stats)


def of_parameters_alone(net, params, stats, x, y, share):
    found, batch = grads(net, params, stats, x, y)
    return jax.tree.map(lambda leaf: share * leaf, found), batch


def scaled_up(net, params, stats, x, y):
    """The statistics alone."""
    found, batch = grads(net, params, stats, x, y)
    return found, jax.tree.map(lambda leaf: 1000 * leaf, batch)


WAYS = {
    "vmap of parts": outside(lambda f: lambda x: jax.vmap(f)(cut(x)).reshape(x.shape[0], -1)),
    "vmap of rows": outside(jax.vmap),
    "vmap of vmap": outside(
        lambda f: lambda x: jax.vmap(jax.vmap(f))(cut(x)).reshape(x.shape[0], -1)
    ),
    "vmap in one place": outside(
        lambda f: lambda x: jnp.concatenate([jax.vmap(f)(x[:8]), f(x[8:])])
    ),
    "remat": outside(jax.checkpoint),
    "map": outside(lambda f: lambda x: jax.lax.map(f, cut(x)).reshape(x.shape[0], -1)),
    "mean of parts": over_parts(mean),
    "unequal parts, the loss": unequal(in_the_loss),
    "unequal parts, the gradient": unequal(of_parameters_alone),
    "mean of gradients": over_parts(separately),
    "pmean": collective(jax.lax.pmean, PARTS),
    "pmean of 12": collective(jax.lax.pmean, 12),
    "scan": scanned,
    "per example": per_example,
    "loss scale": scaled,
    "statistics scaled": scaled_up,
}
QUICK = {("default", way) for way in WAYS} | {
    (rule, way) for rule in RULES for way in ("vmap of rows", "mean of parts")
}


@functools.cache
def compiled(rule):
    """A network, the gradients of whole batches, and the step that its statistics make of one."""
    net = make("linen", RULES[rule])

    def step(gradient, stats):
        return TX.update(gradient, TX.init(net.params), net.params, neuron_stats=stats)[0]

    return net, jax.jit(functools.partial(grads, net)), jax.jit(step)


@pytest.mark.parametrize(
    ("rule", "way"),
    [
        pytest.param(rule, way, marks=() if (rule, way) in QUICK else pytest.mark.slow)
        for rule in RULES
        for way in WAYS
    ],
)
def test_the_step_is_that_of_the_whole_batch(rule, way):
    """In the first step and, about the center that it has left, in the second."""
    (net, whole, step), (x, y) = compiled(rule), nets.data()
    cut_up = jax.jit(functools.partial(WAYS[way], net))
    # DynamicScale keeps its scale in float32.
    gate = 1e-6 if way == "loss scale" else SAME_STEP
    stats = net.stats
    for shift in (0.0, 0.5):
        gradient, batch = whole(net.params, stats, x + shift, y)
        parts = cut_up(net.params, stats, x + shift, y)[1]
        found, expected = (update(stats, each) for each in (parts, batch))
        assert error(step(gradient, found), step(gradient, expected)) <= gate
        stats = expected


def test_rows_count_once():
    """Each is a sample, whatever the loss is of them."""
    net, (x, _) = make("linen"), nets.data()

    def summed(apply):
        return jax.jit(
            jax.grad(lambda s: jnp.sum(apply(lambda row: net.apply(net.params, s, row))(x)))
        )

    one, rows = (summed(apply)(net.stats) for apply in (lambda f: f, jax.vmap))
    for name in one:
        a, b = (each[name]["statistics"].counted() for each in (one, rows))
        assert float(a.samples) == float(b.samples) == x.shape[0]
        assert jnp.allclose(a.layer_second, b.layer_second, rtol=1e-12)


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_an_input_that_hardly_varies_in_one_part(decay):
    """As normalized ones do: the first step is that of the whole batch all the same."""
    x = np.random.default_rng(0).standard_normal((2, 6, 3))
    x[0, :, 1] = 0.7 + 5e-4 * x[0, :, 1]
    layer = jaxnorm.linen.Dense(2, gate="silu", rule=Rule(decay=decay), param_dtype=float)
    variables = layer.init(jax.random.key(0), x[0])
    stats = jaxnorm.linen.init_statistics(layer, variables, x[0])

    def out(stats, x):
        return jnp.sum(layer.apply({**variables, "neuron_stats": stats}, x) ** 2)

    record = jax.jit(jax.grad(out))
    parts = jax.tree.map(jnp.add, *(record(stats, part) for part in x))
    whole = record(stats, x.reshape(12, 3))
    found, right = (moments(update(stats, each)["statistics"]) for each in (parts, whole))
    assert found.varies.all()
    assert error((found.mean, found.sigma), (right.mean, right.sigma)) <= SAME_STEP


@pytest.mark.parametrize("decay", [0.0, 0.5])
@pytest.mark.parametrize(
    ("dtype", "means", "skipped"),
    [
        ("float64", (14, 18), False),
        ("float64", (250, 260), True),
        ("float64", (1e5, 1e5 + 2), True),
        ("float32", (12, 14), False),
        ("float32", (14, 18), True),
        ("float32", (1e3, 1e3 + 2), True),
    ],
)
def test_parts_of_a_first_batch_with_means_far_from_zero(dtype, means, skipped, decay):
    """The step of the whole batch, or none, which is counted; the right one in the next."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 16, 3))
    for part, mean in zip(x, means, strict=True):
        part[:, 1] = (part[:, 1] - part[:, 1].mean()) / part[:, 1].std() + mean
    x = jnp.asarray(x, dtype)
    rule = Rule(decay=decay)
    layer = jaxnorm.linen.Dense(2, gate="silu", rule=rule, param_dtype=dtype)
    variables = layer.init(jax.random.key(0), x[0])
    stats = jaxnorm.linen.init_statistics(layer, variables, x[0])

    @jax.jit
    @jax.grad
    def record(stats, x):
        return jnp.sum(layer.apply({**variables, "neuron_stats": stats}, x) ** 2)

    for first in (True, False):
        parts = jax.tree.map(jnp.add, *(record(stats, part) for part in x))
        whole = record(stats, x.reshape(32, 3))
        found, expected = (update(stats, each) for each in (parts, whole))
        if not skipped or (decay == 0 and not first):  # with a decay one more is remembered
            one, right = (moments(each["statistics"]) for each in (found, expected))
            gate = 2e-3 if dtype == "float32" else 1e-9
            assert error((one.mean, one.sigma), (right.mean, right.sigma)) <= gate
            assert one.varies.all()
        stats = found
    assert jaxnorm.skipped_steps({"layer": stats}) == {"layer": int(skipped)}


@pytest.mark.parametrize("rows", [4, 1])
def test_equal_examples_are_as_many_as_there_are(rows):
    """Truth tables, states of a few kinds: what `jax.vmap` maps is told apart by its place."""
    net = make("linen")
    x, y = (jnp.tile(a[:4], (16, 1)) for a in nets.data())
    run = jax.jit(functools.partial(outside(jax.vmap), net))
    parts = [a.reshape(-1, rows, a.shape[-1]) for a in (x, y)]
    for layer in update(net.stats, run(net.params, net.stats, *parts)[1]).values():
        assert float(layer["statistics"].samples) == 64
