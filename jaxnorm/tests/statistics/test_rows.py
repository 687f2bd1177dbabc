"""`Rule.statistics_rows`: which rows are taken, and that only the neurons' own part is theirs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxnorm
from jaxnorm import Rule, neuron_moments, neuronwise_conv, neuronwise_dense
from jaxnorm.operations.rows import spaced, spaced_among
from jaxnorm.tests.statistics.test_tracked import (
    DOUBLE,
    initialized,
    moments,
    record,
    track,
    weight,
)
from parity_tests import oracle
from parity_tests.oracle.weighted_samples import batches, naive
from parity_tests.tolerances import GATE, SAME_STEP, VISIBLE, slice_error


@pytest.mark.parametrize("batch", [1, 2, 7, 12, 60, 96, 256, 1000, 1024, 8192])
def test_which_rows_are_taken(batch):
    for rows in {1, 2, 3, batch // 16, batch // 4, batch // 2, batch} - {0}:
        x = jnp.arange(batch)
        taken = spaced(x, rows, 0)
        assert taken.tolist() == oracle.spaced(batch, rows)
        assert spaced(taken, rows, 0).tolist() == taken.tolist()  # who cuts again cuts nothing
        aside = spaced(jnp.stack([x, -x]), rows, 1)
        assert (aside == jnp.stack([taken, -taken])).all()


@pytest.mark.parametrize(("batch", "rows"), [(30, 4), (30, 7), (30, 29), (100_000, 60_000)])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.7, 1.0])
def test_which_rows_of_those_that_count(batch, rows, share):
    """In 32 bits, which number of a row times number of samples may be too large for."""
    counted = np.random.default_rng(0).uniform(size=batch) < share
    places = np.concatenate([np.flatnonzero(counted), np.flatnonzero(~counted)])
    with jax.enable_x64(False):
        taken = np.asarray(spaced_among(jnp.asarray(counted), rows))
    number = max(int(counted.sum()), rows)
    assert taken.tolist() == [places[j * number // rows] for j in range(rows)]


@pytest.mark.parametrize("shape", [(12, 5), (3, 4, 5)])
@pytest.mark.parametrize("scale", ["neuron", "layer", "none"])
def test_sums_of_the_rows_and_of_all(shape, scale):
    ((x, g),) = batches(1, shape)
    layer = jaxnorm.linen.Dense(4, gate="silu", rule=Rule(statistics_rows=4, scale=scale), **DOUBLE)
    every = layer.clone(rule=Rule(scale=scale))
    variables = initialized(every, x)
    flat, flat_g = x.reshape(-1, 5)[::3], g.reshape(-1, 4)[::3]
    found, whole, some = (
        of_first(one, variables, given)
        for one, given in ((layer, (x, g)), (every, (x, g)), (every, (flat, flat_g)))
    )
    assert whole.rows_mass is None
    for name in ("samples", "layer_first", "layer_second", "spread"):
        same(getattr(found, name), getattr(whole, name))
    for name in ("mass", "square", "first", "second"):
        same(getattr(found, name), getattr(some, name))
    same(found.rows_mass.sum(), some.samples)
    same(found.rows_first, some.layer_first)
    same(found.rows_second, some.layer_second if scale == "neuron" else None)
    uniform = layer.clone(rule=Rule(statistics_rows=4, weighting="uniform"))
    assert of_first(uniform, variables, (x, g)).rows_mass is None


def of_first(layer, variables, given):
    """The sums of a first batch."""
    stats = jaxnorm.linen.init_statistics(layer, variables, jnp.asarray(given[0]))
    return record(layer, variables, stats, *given)["statistics"].counted()


def same(a, b):
    assert (a is None) == (b is None)
    if a is not None:
        assert slice_error(np.asarray(a), np.asarray(b), axes=()) <= GATE["float64"]


@pytest.mark.parametrize(("decay", "scale"), [(0.0, "neuron"), (0.7, "neuron"), (0.7, "layer")])
def test_moments_of_the_weighted_samples(decay, scale):
    """The second batch is summed about another center than the first."""
    given = list(batches(2))
    rule = Rule(decay=decay, scale=scale, statistics_rows=4, smoothing=0.0)
    layer = jaxnorm.linen.Dense(4, gate="silu", rule=rule, **DOUBLE)
    variables = initialized(layer, given[0][0])
    parts = [(x, weight(x, variables)) for x, _ in given]
    weights = [decay * (1 - decay), 1 - decay]
    found = moments(track(layer, variables, given))
    mean, sigma = naive(parts, weights, scale=scale, rows=slice(None, None, 3))
    assert slice_error(found.mean, mean, axes=(0, 1)) <= SAME_STEP
    assert slice_error(np.broadcast_to(found.sigma, sigma.shape), sigma) <= SAME_STEP
    mean, _ = naive(parts, weights, scale=scale)
    assert slice_error(found.mean, mean, axes=(0, 1)) > VISIBLE


def test_what_is_the_same_on_the_rows():
    """Or but for rounding: of such an input the rows know nothing, and sigma is the layer's."""
    rng = np.random.default_rng(0)
    x, s = rng.standard_normal((64, 4)), rng.uniform(size=(64, 3))
    x[:, 1] += 1e3
    x[::4, :2] = 0.0, 1e3 + 0.1
    mean, sigma = neuron_moments(x, s, Rule(statistics_rows=16, damping=0.0))
    layer = x.mean(0), x.std(0)
    for found, expected in zip((mean, sigma), layer, strict=True):
        expected = np.repeat(expected[:2, None], 3, axis=1)
        assert slice_error(np.asarray(found[:2]), expected, axes=(0, 1)) <= 1e-10
    assert np.abs(sigma[2:] / layer[1][2:, None] - 1).min() > VISIBLE


def test_a_sorted_batch():
    """Of ten digits, one after the other: a quarter of the rows tells nearly what all tell."""
    for mean, sigma in errors(4):
        assert mean < 0.1
        assert sigma < 0.1


def errors(share, *, first=False, shuffled=False, seed=0):
    """Per layer of a trained network: errors of (mean / sigma, log sigma), root mean square.

    With 1 / share of the rows of a batch that is sorted by class, or shuffled; with the first rows
    as a batch of their own.
    """
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(images))[:1792]
    if not shuffled:
        order = order[np.argsort(labels[order], kind="stable")]
    images, labels = (images[order] / 16).astype(np.float32), labels[order]
    params = [rng.normal(size=(n, 128)).astype(np.float32) * np.sqrt(2 / n) for n in (64, 128, 128)]
    tx = optax.adam(1e-3)

    def layers(params, x):
        for w in params:
            yield x, x @ w
            x = jax.nn.relu(x @ w)

    def loss(params, x, y):
        *_, (_, z) = layers(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(z, y).mean()

    def step(carry, rows):
        params, state = carry
        grads = jax.grad(loss)(params, jnp.asarray(images)[rows], jnp.asarray(labels)[rows])
        updates, state = tx.update(grads, state)
        return (optax.apply_updates(params, updates), state), None

    rows = rng.integers(len(images), size=(200, 128))
    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), rows)
    wanted = len(images) // share
    for x, z in [*layers(params, images)][:2]:
        s, rule = z > 0, Rule(statistics_rows=wanted)
        mean, sigma = neuron_moments(x, s)
        given = (x[:wanted], s[:wanted]) if first else (x, s, rule)
        found = neuron_moments(*given)
        off = (found[0] - mean) / sigma, jnp.log(found[1] / sigma)
        yield tuple(float(jnp.sqrt(jnp.mean(each**2))) for each in off)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("layer", ["dense", "sequence", "images"])
def test_a_sharded_batch_stays_where_it_is(layer, kind):
    """Eight devices each take of their own: what is sent is what is summed, and nothing else."""
    shape = {"dense": (256, 8), "sequence": (16, 32, 8), "images": (256, 4, 4, 8)}[layer]
    kernel = (3, 3, 8, 12) if layer == "images" else (8, 12)
    apply = neuronwise_conv if layer == "images" else neuronwise_dense
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))

    def gradient(kernel, bias, x):
        def loss(kernel, bias):
            return jnp.sum(apply(x, kernel, bias, gate="silu", rule=Rule(statistics_rows=64)) ** 2)

        return jax.grad(loss, (0, 1))(kernel, bias)

    with jax.set_mesh(mesh):
        whole, rows = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
        arrays = [
            jax.ShapeDtypeStruct(each, jnp.float32, sharding=where)
            for each, where in ((kernel, whole), ((12,), whole), (shape, rows))
        ]
        program = jax.jit(gradient).lower(*arrays).compile().as_text()
    assert " all-reduce(" in program
    for sent in ("collective-permute", "all-gather", "all-to-all", "gather"):
        assert f" {sent}(" not in program
        assert f" {sent}-start(" not in program
