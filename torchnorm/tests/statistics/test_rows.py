"""`Rule.statistics_rows`: which rows are taken, and that only the neurons' own part is theirs."""

import numpy as np
import pytest
import torch

from parity_tests import oracle
from parity_tests.oracle.weighted_samples import batches, naive
from parity_tests.tolerances import GATE, SAME_STEP, VISIBLE, slice_error
from torchnorm import Rule, neuron_moments
from torchnorm.functional import neuronwise_linear
from torchnorm.operations.rows import spaced, spaced_among
from torchnorm.statistics import merging
from torchnorm.tests.optim.nets import error
from torchnorm.tests.statistics.test_tracked import dense, track, weight


@pytest.mark.parametrize("batch", [1, 2, 7, 12, 60, 96, 256, 1000, 1024, 8192])
def test_which_rows_are_taken(batch):
    for rows in {1, 2, 3, batch // 16, batch // 4, batch // 2, batch} - {0}:
        taken = spaced(torch.arange(batch), rows)
        assert taken.tolist() == oracle.spaced(batch, rows)
        assert spaced(taken, rows).tolist() == taken.tolist()  # who cuts again cuts nothing


def test_a_block_of_one_is_a_view():
    x = torch.zeros(48, 3)
    assert spaced(x, 16).data_ptr() == x.data_ptr()


@pytest.mark.parametrize(("batch", "rows"), [(30, 4), (30, 7), (30, 29), (100_000, 60_000)])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.7, 1.0])
def test_which_rows_of_those_that_count(batch, rows, share):
    counted = np.random.default_rng(0).uniform(size=batch) < share
    places = np.concatenate([np.flatnonzero(counted), np.flatnonzero(~counted)])
    taken = spaced_among(torch.tensor(counted), rows)
    number = max(int(counted.sum()), rows)
    assert taken.tolist() == [places[j * number // rows] for j in range(rows)]


@pytest.mark.parametrize("shape", [(12, 5), (3, 4, 5)])
@pytest.mark.parametrize("scale", ["neuron", "layer", "none"])
def test_sums_of_the_rows_and_of_all(shape, scale):
    ((x, g),) = batches(1, shape)
    made, every = dense(Rule(statistics_rows=4, scale=scale)), dense(Rule(scale=scale))
    some = gathered(every, x.reshape(-1, 5)[::3], g.reshape(-1, 4)[::3])
    found, whole = gathered(made, x, g), gathered(dense(Rule(scale=scale)), x, g)
    assert whole.rows_mass is None
    for name in ("samples", "layer_first", "layer_second", "spread"):
        same(getattr(found, name), getattr(whole, name))
    for name in ("mass", "square", "first", "second"):
        same(getattr(found, name), getattr(some, name))
    same(found.rows_mass.sum(), some.samples)
    same(found.rows_first, some.layer_first)
    same(found.rows_second, some.layer_second if scale == "neuron" else None)
    uniform = dense(Rule(statistics_rows=4, weighting="uniform"))
    assert gathered(uniform, x, g).rows_mass is None
    gathered(every, x, g)
    assert error([made[0].weight.grad], [every[0].weight.grad]) <= GATE["float64"]


def gathered(made, x, g):
    """The sums of one batch."""
    made[1].zero_grad()
    made[0](torch.as_tensor(x)).backward(torch.as_tensor(g))
    return made[0].neuron_stats.gathered()


def same(a, b):
    assert (a is None) == (b is None)
    if a is not None:
        assert slice_error(a.numpy(), b.numpy(), axes=()) <= GATE["float64"]


@pytest.mark.parametrize(("decay", "scale"), [(0.0, "neuron"), (0.7, "neuron"), (0.7, "layer")])
def test_moments_of_the_weighted_samples(decay, scale):
    """The second batch is summed about another center than the first."""
    given = list(batches(2))
    made = dense(Rule(decay=decay, scale=scale, statistics_every=1, statistics_rows=4))
    parts = [(x, weight(x, made[0])) for x, _ in given]
    weights = [decay * (1 - decay), 1 - decay]
    found = merging.moments(track(made, given))
    mean, sigma = naive(parts, weights, scale=scale, rows=slice(None, None, 3))
    assert slice_error(found.mean.T, mean, axes=(0, 1)) <= SAME_STEP
    assert slice_error(found.sigma.T.expand(sigma.shape), sigma, axes=(0, 1)) <= SAME_STEP
    mean, _ = naive(parts, weights, scale=scale)
    assert slice_error(found.mean.T, mean, axes=(0, 1)) > VISIBLE


def test_what_is_the_same_on_the_rows():
    """Or but for rounding: of such an input the rows know nothing, and sigma is the layer's."""
    rng = np.random.default_rng(0)
    x, s = rng.standard_normal((64, 4)), rng.uniform(size=(64, 3))
    x[:, 1] += 1e3
    x[::4, :2] = 0.0, 1e3 + 0.1
    rule = Rule(statistics_rows=16, damping=0.0)
    found = (a.T.numpy() for a in neuron_moments(torch.tensor(x), torch.tensor(s), rule))
    mean, sigma = found
    layer = x.mean(0), x.std(0)
    for actual, expected in zip((mean, sigma), layer, strict=True):
        expected = np.repeat(expected[:2, None], 3, axis=1)
        assert slice_error(actual[:2], expected, axes=(0, 1)) <= 1e-10
    assert np.abs(sigma[2:] / layer[1][2:, None] - 1).min() > VISIBLE


def test_compiled_for_any_batch():
    """Which rows is asked of the number itself, so it may be compiled anew, but is right."""
    rule = Rule(statistics_rows=4)
    weight, bias = torch.ones(3, 5, requires_grad=True), torch.zeros(3, requires_grad=True)

    def gradient(function, x):
        (function(x) ** 2).sum().backward()
        found, weight.grad, bias.grad = weight.grad, None, None
        return found

    def run(x):
        return neuronwise_linear(x, weight, bias, gate="relu", rule=rule)

    compiled = torch.compile(run, dynamic=True, backend="aot_eager")
    for batch in (12, 7):
        x = torch.randn(batch, 5)
        assert error([gradient(compiled, x)], [gradient(run, x)]) <= GATE["float32"]
