"""Tracked statistics: what is merged is the moments of the weighted samples, by NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxnorm
from jaxnorm import Rule
from jaxnorm.statistics import merging
from jaxnorm.tests import nets
from jaxnorm.tests.nets import make
from parity_tests import oracle
from parity_tests.oracle import Convolution
from parity_tests.oracle.weighted_samples import batches, naive
from parity_tests.tolerances import GATE, SAME_STEP, VISIBLE, slice_error

DOUBLE = {"param_dtype": jnp.float64}


def record(layer, variables, stats, x, g):
    """The gradient at the statistics."""

    def z(stats):
        return layer.apply({**variables, "neuron_stats": stats}, jnp.asarray(x))

    (batch,) = jax.vjp(z, stats)[1](jnp.asarray(g))
    return batch


def track(layer, variables, given):
    """The statistics after these batches."""
    stats = jaxnorm.linen.init_statistics(layer, variables, jnp.asarray(given[0][0]))
    step = jax.jit(lambda s, x, g: jaxnorm.update_statistics(s, record(layer, variables, s, x, g)))
    for x, g in given:
        stats = step(stats, x, g)
    return stats


def moments(stats):
    """Those of the only layer."""
    return merging.moments(stats["statistics"])


def with_steps(stats, steps):
    """The same, but for the number of steps, and how many ago they were taken."""
    numbers = {"steps": jnp.asarray(steps), "age": jnp.asarray(1.0)}
    return {"statistics": stats["statistics"].with_scalars(**numbers)}


def weight(x, variables, gate="silu"):
    z = x @ np.asarray(variables["params"]["kernel"]) + np.asarray(variables["params"]["bias"])
    return np.abs(oracle.GATES[gate][1](z))


def initialized(layer, x):
    variables = layer.init(jax.random.key(0), jnp.asarray(x))
    bias = 0.1 * jnp.arange(variables["params"]["bias"].size, dtype=float)
    return {"params": {**variables["params"], "bias": bias}}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rule", [Rule(), Rule(scale="layer"), Rule(statistics_rows=4)], ids=str)
def test_one_neuron_whose_sums_are_not_finite(rule, bad):
    """It has the plain coordinates, as far as they are its own, and the rest theirs."""
    layer = jaxnorm.linen.Dense(4, gate="silu", rule=rule, **DOUBLE)
    ((x, g),) = batches(1)
    x[:, 2] = 3.0
    variables = initialized(layer, x)
    stats = jaxnorm.linen.init_statistics(layer, variables, jnp.asarray(x))
    new, old = record(layer, variables, stats, x, g)["statistics"], stats["statistics"]
    # No rounding, whose sign depends on the machine.
    new = new.replace(layer_first=new.layer_first.at[1].set(0.5))
    fine = merging.coordinates(merging.merge(old, new))
    for at in (1, 2):  # an input that varies, and one that does not
        spoiled = new.replace(first=new.first.at[at, 1].set(bad))
        found = merging.coordinates(merging.merge(old, spoiled))
        assert not found.mean[:, 1].any()
        assert rule.scale == "layer" or (found.scale[:, 1] == 1).all()
        others = np.array([0, 2, 3])
        for actual, expected in zip(found[:2], fine[:2], strict=True):
            actual, expected = (np.broadcast_to(a, (5, 4))[:, others] for a in (actual, expected))
            assert np.array_equal(actual, expected)


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("scale", ["neuron", "layer"])
def test_moments_of_the_weighted_samples(decay, scale):
    given = list(batches(4))
    rule = Rule(decay=decay, scale=scale, smoothing=0.0)
    layer = jaxnorm.linen.Dense(4, gate="silu", rule=rule, **DOUBLE)
    variables = initialized(layer, given[0][0])
    parts = [(x, weight(x, variables)) for x, _ in given]
    for count in (1, 2, 4):  # exact from the first step on: nothing to correct
        found = moments(track(layer, variables, given[:count]))
        weights = [decay ** (count - 1 - k) * (1 - decay) for k in range(count)]
        mean, sigma = naive(parts[:count], weights, scale=scale)
        assert slice_error(found.mean, mean, axes=(0, 1)) <= SAME_STEP
        assert slice_error(np.broadcast_to(found.sigma, sigma.shape), sigma) <= SAME_STEP


def test_the_difference_of_the_means_counts():
    """An average of variances would not hold it."""
    given = list(batches(2))
    layer = jaxnorm.linen.Dense(4, gate="silu", rule=Rule(decay=0.5), **DOUBLE)
    variables = initialized(layer, given[0][0])
    both = moments(track(layer, variables, given)).sigma
    each = [moments(track(layer, variables, [one])).sigma ** 2 for one in given]
    assert slice_error(jnp.sqrt((each[0] + each[1]) / 2), both) > 10 * VISIBLE


@pytest.mark.parametrize("weighting", ["gate", pytest.param("error", marks=pytest.mark.slow)])
def test_convolution_with_padding(weighting):
    """Padding is a sample of value 0 in every batch, about whatever the sums are taken."""
    given = list(batches(3, (2, 6, 5, 3)))
    rule = Rule(decay=0.6, weighting=weighting)
    layer = jaxnorm.linen.Conv(4, (3, 3), gate="silu", rule=rule, **DOUBLE)
    variables = initialized(layer, given[0][0])
    parts = []
    for x, g in given:
        patches = Convolution().view(x.shape, (3, 3, 3, 4)).patches(x)[:, 0]
        flat = {"params": {"kernel": variables["params"]["kernel"].reshape(27, 4)}}
        flat["params"]["bias"] = variables["params"]["bias"]
        parts.append((patches, weight(patches, flat)))
        if weighting == "error":
            parts[-1] = (patches, g.reshape(-1, 4) ** 2)
    found = moments(track(layer, variables, given))
    mean, sigma = naive(parts, [0.36 * 0.4, 0.6 * 0.4, 0.4])
    assert slice_error(found.mean.reshape(27, 4), mean, axes=(0, 1)) <= SAME_STEP
    assert slice_error(found.sigma.reshape(27, 4), sigma, axes=(0, 1)) <= SAME_STEP


def same(a, b):
    return jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), a, b))


@pytest.mark.parametrize("rule", [Rule(decay=0.9), Rule()], ids=str)
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e200])
def test_a_batch_that_is_not_finite_leaves_the_old(bad, rule):
    """1e200: the inputs are finite, their squares are not."""
    (x, g), (other, _) = batches(2)
    layer = jaxnorm.linen.Dense(4, gate="silu", rule=rule, **DOUBLE)
    variables = initialized(layer, x)
    stats = track(layer, variables, [(x, g)])
    other[3, 1] = bad
    after = jaxnorm.update_statistics(stats, record(layer, variables, stats, other, g))
    assert float(after["statistics"].steps) == float(after["statistics"].age) == 2
    assert same(with_steps(after, 1.0), stats)


def test_without_a_memory_one_bad_batch_spoils_no_other():
    """The batch itself has the plain gradient, in the neurons that it spoils."""
    (x, g), (other, _) = batches(2)
    layer = jaxnorm.linen.Dense(4, gate="silu", rule=nets.OF_THE_BATCH, **DOUBLE)
    variables = initialized(layer, x)
    stats = track(layer, variables, [(x, g)])
    broken = x.copy()
    broken[3, 1] = np.nan
    spoiled = jaxnorm.update_statistics(stats, record(layer, variables, stats, broken, g))
    found = moments(spoiled)
    assert not found.mean.any()
    assert (found.sigma == 1).all()
    healed = jaxnorm.update_statistics(spoiled, record(layer, variables, spoiled, other, g))
    expected = moments(track(layer, variables, [(other, g)]))
    for name in ("mean", "sigma"):
        error = slice_error(getattr(moments(healed), name), getattr(expected, name))
        assert error <= GATE["float64"]


def due(every, steps):
    """In which steps statistics are taken: first in all, then in ever fewer."""
    found, last = [], 0
    for step in range(steps):
        found.append(step == 0 or step - last >= min(every, max(1, step // 10)))
        last = step if found[-1] else last
    return found


@pytest.mark.parametrize(
    ("rule", "every"),
    [
        (Rule(), 16),
        (Rule(statistics_every=3), 3),
        (Rule(statistics_every=1), 1),
        (Rule(decay=0.5), 1),
        (Rule(decay=0.5, statistics_every=4), 4),
    ],
    ids=str,
)
def test_statistics_every(rule, every):
    """Ever more seldom; with an average over batches in every step, unless it is asked for."""
    (x, g), (other, _) = batches(2)
    layer = jaxnorm.linen.Dense(4, gate="silu", rule=rule, **DOUBLE)
    variables = initialized(layer, x)

    def step(stats, k):
        after = jaxnorm.update_statistics(stats, record(layer, variables, stats, other + k, g))
        return after, jnp.any(after["statistics"].center != stats["statistics"].center)

    stats = track(layer, variables, [(x, g)])
    after, taken = jax.lax.scan(step, stats, jnp.arange(1.0, 200.0))
    assert [True, *taken.tolist()] == due(every, 200)
    assert float(after["statistics"].steps) == 200


@pytest.mark.parametrize("what", ["one sample", "no sample", "no number"])
def test_a_due_step_of_a_batch_that_is_of_no_use_stays_due(what):
    """A short last batch, or one that overflows, may fall on every step that is due."""
    ((x, g),) = batches(1)
    layer = jaxnorm.linen.Dense(4, gate="silu", **DOUBLE)
    variables = initialized(layer, x)
    count = {"one sample": 1, "no sample": 0, "no number": len(x)}[what]
    broken = np.where(what == "no number", np.inf, x)
    step = jax.jit(lambda s, x, g: jaxnorm.update_statistics(s, record(layer, variables, s, x, g)))
    stats = step(track(layer, variables, [(x, g)]), x, g)["statistics"]
    late = {"steps": jnp.asarray(200.0), "age": jnp.asarray(16.0)}
    before = step({"statistics": stats.with_scalars(**late)}, broken[:count], g[:count])
    assert float(before["statistics"].age) == 17
    after = step(before, x + 1, g)
    assert float(after["statistics"].age) == 1
    assert not same(after["statistics"].first, before["statistics"].first)


def test_an_input_that_is_0_now():
    """Summed about what it was before: the rounding of that is no second moment."""
    (x, g), (other, h) = batches(2)
    x[:, 1], other[:, 1] = x[:, 1] + 1e6, 0
    layer = jaxnorm.linen.Dense(4, gate="silu", rule=nets.OF_THE_BATCH, **DOUBLE)
    variables = initialized(layer, x)
    found, expected = (
        merging.moments(track(layer, variables, given)["statistics"], centered=False).sigma
        for given in ([(x, g), (other, h)], [(other, h)])
    )
    assert slice_error(found, expected) <= SAME_STEP


@pytest.mark.parametrize("ratio", [1e3, pytest.param(1e4, marks=pytest.mark.slow)])
def test_large_means_in_float32(ratio):
    """How far the update is from that of float64 on the same numbers, by mean / spread.

    From the second step on the sums are taken about the mean of the first: the moments are exact.
    What is left is ``g_W - mean g_b``, of which a plain gradient in float32 has lost
    ``eps * mean / spread``: up to that the stateless form, which has the inputs, is better.
    """
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((64, 5)) + ratio).astype(np.float32)
    g = rng.standard_normal((64, 4)).astype(np.float32)
    updates, found = {}, {}
    for dtype in (np.float32, np.float64):
        layer = jaxnorm.linen.Dense(4, gate=None, param_dtype=dtype)
        params = {"kernel": jnp.zeros((5, 4), dtype), "bias": jnp.zeros(4, dtype)}
        variables = {"params": params}
        stats = track(layer, variables, [(x.astype(dtype), g.astype(dtype))] * 2)
        z = lambda p, layer=layer: layer.apply({"params": p}, jnp.asarray(x, p["bias"].dtype))  # noqa: E731
        (grads,) = jax.vjp(z, params)[1](jnp.asarray(g, dtype))
        tx = jaxnorm.in_neuron_coordinates(optax.sgd(1.0))
        updates[dtype] = tx.update(grads, tx.init(params), params, neuron_stats=stats)[0]
        found[dtype] = moments(stats)
    assert slice_error(found[np.float32].sigma, found[np.float64].sigma) <= 5e-6
    assert slice_error(found[np.float32].mean, found[np.float64].mean) <= 2e-7
    kernels = (updates[dtype]["kernel"] for dtype in (np.float32, np.float64))
    assert slice_error(*kernels, axes=()) <= 16 * np.finfo(np.float32).eps * ratio


# --- Batches of one -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inner", "dtype"),
    [
        pytest.param(optax.sgd(0.02), np.float64, marks=pytest.mark.slow),
        (optax.adam(0.02), np.float32),
        pytest.param(optax.adam(0.02), np.float64, marks=pytest.mark.slow),
    ],
)
def test_batches_of_one_train(inner, dtype):
    """With decay; the first sample alone has no spread, and must not be divided by epsilon."""
    x, y = nets.data(64, dtype)
    net, tx = make("linen", Rule(decay=0.98), dtype), jaxnorm.in_neuron_coordinates(inner)

    @jax.jit
    def run(carry):
        def body(carry, sample):
            new = net.step(tx, *carry, *(a[None] for a in sample))
            step = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), new[1], carry[1])
            return new, (step["Dense_0"]["kernel"], step["Dense_1"]["kernel"])

        return jax.lax.scan(body, carry, (jnp.tile(x, (6, 1)), jnp.tile(y, (6, 1))))

    (_, params, stats), steps = run((tx.init(net.params), net.params, net.stats))
    assert max(float(step.max()) for step in steps) < 0.5
    before, after = net.loss(net.params, None, x, y), net.loss(params, stats, x, y)
    assert after < 0.7 * before


def test_a_single_sample_without_a_memory():
    """Is its own mean: no step, which is counted, and never NaN; with older moments, with those."""
    x, y = nets.data(1)
    net, tx = make("linen"), jaxnorm.in_neuron_coordinates(optax.sgd(0.1))
    step = jax.jit(lambda *args: net.step(tx, *args))
    state, params, stats = step(tx.init(net.params), net.params, net.stats, x, y)
    assert same(params, net.params)
    assert jaxnorm.skipped_steps(stats) == {"Dense_0": 1, "Dense_1": 1}
    state, params, stats = step(state, params, stats, *nets.data())
    old = {name: moments(each) for name, each in stats.items()}
    state, after, stats = step(state, params, stats, x, y)
    new = {name: moments(each) for name, each in stats.items()}
    for name in ("Dense_0", "Dense_1"):
        for field in ("mean", "sigma"):
            fields = (getattr(each[name], field) for each in (old, new))
            assert bool(jnp.array_equal(*fields))
    assert not same(params, after)
    assert jaxnorm.skipped_steps(stats) == {"Dense_0": 1, "Dense_1": 1}


def test_constant_inputs_are_not_divided_by_epsilon():
    """A layer that reads the same in every sample has no gradient there, but its rounding."""
    layer = jaxnorm.linen.Dense(4, gate=None)
    x = jnp.full((8, 5), 1.7) * jnp.arange(1, 6)[None] / 3
    g = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    variables = layer.init(jax.random.key(0), x.astype(jnp.float32))
    stats = track(layer, variables, [(np.asarray(x, np.float32), g)] * 2)
    tx, params = jaxnorm.in_neuron_coordinates(optax.adam(0.01)), variables["params"]
    z = lambda p: layer.apply({"params": p}, x.astype(jnp.float32))  # noqa: E731
    (grads,) = jax.vjp(z, params)[1](jnp.asarray(g))
    updates, _ = tx.update(grads, tx.init(params), params, neuron_stats=stats)
    assert not updates["kernel"].any()
