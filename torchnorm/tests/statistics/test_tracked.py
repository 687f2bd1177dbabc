"""Tracked statistics: what is merged is the moments of the weighted samples, by NumPy."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import torchnorm
from parity_tests import oracle
from parity_tests.oracle import Convolution
from parity_tests.oracle.weighted_samples import batches, naive
from parity_tests.tolerances import GATE, SAME_STEP, VISIBLE, slice_error
from torchnorm import Rule, coordinates
from torchnorm.statistics import merging
from torchnorm.tests.optim import nets
from torchnorm.tests.optim.nets import error, loss, network, same, sgd, train, values

DOUBLE = {"dtype": torch.float64}


def dense(rule=Rule(), gate="silu", **kwargs):
    """A layer with fixed parameters, that records; its optimizer has a rate of 0."""
    torch.manual_seed(0)
    return recording(torchnorm.Linear(5, 4, gate=gate, rule=rule, **(DOUBLE | kwargs)))


def recording(layer):
    return layer, sgd(layer, 0.0)


def take(layer, optimizer, x, g):
    """One batch: inputs and the gradient at z."""
    optimizer.zero_grad()
    x, g = (torch.as_tensor(a, dtype=layer.weight.dtype) for a in (x, g))
    layer(x).backward(g)
    optimizer.step()


def track(made, given):
    """The statistics after these batches."""
    for x, g in given:
        take(*made, x, g)
    return made[0].neuron_stats.read().map(lambda value: value.detach().clone())


def weight(x, layer, gate="silu"):
    """The sample weight, by NumPy."""
    kernel = layer.weight.detach().flatten(1).numpy()
    return np.abs(oracle.GATES[gate][1](x @ kernel.T + layer.bias.detach().numpy()))


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("scale", ["neuron", "layer"])
def test_moments_of_the_weighted_samples(decay, scale):
    given = list(batches(4))
    made = dense(Rule(decay=decay, scale=scale))
    parts = [(x, weight(x, made[0])) for x, _ in given]
    for count in range(1, 5):  # exact from the first step on: nothing to correct
        found = merging.moments(track(made, given[count - 1 : count]))
        weights = [decay ** (count - 1 - k) * (1 - decay) for k in range(count)]
        mean, sigma = naive(parts[:count], weights, scale=scale)
        assert slice_error(found.mean.T, mean, axes=(0, 1)) <= SAME_STEP
        assert slice_error(found.sigma.T.expand(sigma.shape), sigma, axes=(0, 1)) <= SAME_STEP


def test_the_difference_of_the_means_counts():
    """An average of variances would not hold it."""
    given, rule = list(batches(2)), Rule(decay=0.5)
    both = merging.moments(track(dense(rule), given)).sigma
    each = [merging.moments(track(dense(rule), [one])).sigma ** 2 for one in given]
    assert slice_error(((each[0] + each[1]) / 2).sqrt(), both) > 10 * VISIBLE


@pytest.mark.parametrize("weighting", ["gate", "error"])
def test_convolution_with_padding(weighting):
    """Padding is a sample of value 0 in every batch, about whatever the sums are taken."""
    given = list(batches(3, (2, 6, 5, 3)))
    rule = Rule(decay=0.6, weighting=weighting)
    torch.manual_seed(0)
    layer = torchnorm.Conv2d(3, 4, 3, padding=1, gate="silu", rule=rule, **DOUBLE)
    parts = []
    for x, g in given:
        patches = Convolution().view(x.shape, (3, 3, 3, 4)).patches(x)[:, 0]
        kernel = layer.weight.detach().permute(2, 3, 1, 0).reshape(27, 4).numpy()
        s = np.abs(oracle.GATES["silu"][1](patches @ kernel + layer.bias.detach().numpy()))
        parts.append((patches, g.reshape(-1, 4) ** 2 if weighting == "error" else s))
    moved = [(np.moveaxis(x, -1, 1), np.moveaxis(g, -1, 1)) for x, g in given]
    found = merging.moments(track(recording(layer), moved))
    mean, sigma = naive(parts, [0.36 * 0.4, 0.6 * 0.4, 0.4])
    for actual, expected in ((found.mean, mean), (found.sigma, sigma)):
        flat = actual.permute(2, 3, 1, 0).reshape(27, 4)
        assert slice_error(flat, expected, axes=(0, 1)) <= SAME_STEP


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e200])
def test_a_batch_that_is_not_finite_leaves_the_old(bad):
    """1e200: the inputs are finite, their squares are not."""
    (x, g), (other, _) = batches(2)
    made = dense(Rule(decay=0.9))
    stats = track(made, [(x, g)])
    other[3, 1] = bad
    weights = values(made[0])
    after = track(made, [(other, g)])
    assert made[0].neuron_stats.count == 2
    assert after.age == 1
    assert same(after.with_scalars(age=0), stats)
    if bad == 1e200:
        assert same(values(made[0]), weights)


@pytest.mark.parametrize("gate", ["silu", None])
def test_smoothing(gate):
    """Of the second batch a half counts; a batch that is not finite leaves what there is."""
    given = list(batches(2))
    each = [merging.moments(track(dense(gate=gate), [one])) for one in given]
    made = dense(gate=gate)
    track(made, given[:1])
    made[0].neuron_stats.set_count(100, 16)
    found = merging.moments(track(made, given[1:]))
    mean = (each[0].mean + each[1].mean) / 2
    assert error([found.mean], [mean]) <= GATE["float64"]
    if gate is not None:  # without one the variance is that of all samples
        sigma = ((each[0].sigma ** 2 + each[1].sigma ** 2) / 2).sqrt()
        assert error([found.sigma], [sigma]) <= GATE["float64"]
    broken = given[0][0].copy()
    broken[3, 1] = np.inf
    made[0].neuron_stats.set_count(200, 16)
    after = merging.moments(track(made, [(broken, given[0][1])]))
    assert error([after.mean, after.sigma], [found.mean, found.sigma]) <= GATE["float64"]


def test_a_due_step_that_is_missed_stays_due():
    """Of a layer that is not called then, and has a gradient of zeros."""
    ((x, g),) = batches(1)
    layer, optimizer = dense()
    take(layer, optimizer, x, g)
    stats = layer.neuron_stats
    stats.set_count(200, 16)
    optimizer.zero_grad(set_to_none=False)
    optimizer.step()
    assert (stats.count, stats.age, stats.taken) == (201, 17, True)
    take(layer, optimizer, x, g)
    assert (stats.count, stats.age, stats.taken) == (202, 1, False)


@pytest.mark.parametrize("what", ["one sample", "no sample", "no number"])
def test_a_due_step_of_a_batch_that_is_of_no_use_stays_due(what):
    """A short last batch, or one that overflows, may fall on every step that is due."""
    ((x, g),) = batches(1)
    made = dense()
    track(made, [(x, g)])
    stats = made[0].neuron_stats
    stats.set_count(200, 16)
    count = {"one sample": 1, "no sample": 0, "no number": len(x)}[what]
    broken = np.where(what == "no number", np.inf, x)
    before = track(made, [(broken[:count], g[:count])])
    assert (stats.count, stats.age, stats.taken) == (201, 17, True)
    after = track(made, [(x + 1, g)])
    assert (stats.count, stats.age, stats.taken) == (202, 1, False)
    assert not torch.equal(after.first, before.first)


def test_a_due_step_that_a_fused_optimizer_skips_stays_due():
    """What a GradScaler tells it by `found_inf`."""
    ((x, g),) = batches(1)
    layer = torchnorm.Linear(5, 4, gate="silu", **DOUBLE)
    optimizer = sgd(layer, 0.0, fused=True)
    take(layer, optimizer, x, g)
    stats, optimizer.grad_scale = layer.neuron_stats, torch.ones(())
    for skips, counts in ((1.0, (201, 17, True)), (0.0, (201, 1, False))):
        stats.set_count(200, 16)
        optimizer.found_inf = torch.tensor(skips)
        take(layer, optimizer, x, g)
        assert (stats.count, stats.age, stats.taken) == counts


def test_an_input_that_has_varied():
    """It has a gradient while that is remembered, and none where it is forgotten."""
    (x, g), (other, h) = batches(2)
    other[:, 1] = 3.0
    made = dense()
    assert merging.moments(track(made, [(x, g)])).varies.all()
    varied = []
    for _ in range(60):
        made[0].neuron_stats.set_count(200, 16)
        varied.append(merging.moments(track(made, [(other, h)])).varies)
    assert varied[0].all()
    assert not varied[-1][:, 1].any()
    assert varied[-1][:, [0, 2, 3, 4]].all()


def test_without_a_memory_one_bad_batch_spoils_no_other():
    """The batch itself has the plain gradient, in the neurons that it spoils."""
    (x, g), (other, _) = batches(2)
    broken = x.copy()
    broken[3, 1] = 1e200
    made = dense()
    spoiled = merging.moments(track(made, [(x, g), (broken, g)]))
    assert not spoiled.mean.any()
    assert (spoiled.sigma == 1).all()
    healed = merging.moments(track(made, [(other, g)]))
    expected = merging.moments(track(dense(), [(other, g)]))
    assert error([healed.mean, healed.sigma], [expected.mean, expected.sigma]) <= GATE["float64"]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rule", [Rule(), Rule(scale="layer"), Rule(statistics_rows=4)], ids=str)
@pytest.mark.parametrize("form", ["as on a CPU", "as compiled"])
def test_one_neuron_whose_sums_are_not_finite(form, rule, bad, monkeypatch):
    """It has the plain coordinates, as far as they are its own, and the rest theirs.

    Whatever zeros are made with.
    """
    if form == "as compiled":
        monkeypatch.setattr(coordinates, "_in_one_pass", lambda *_: False)
    made = dense(rule)
    ((x, g),) = batches(1)
    x[:, 2] = 3.0
    old = made[0].neuron_stats.values.map(torch.zeros_like)
    made[0](torch.as_tensor(x)).backward(torch.as_tensor(g))
    new = made[0].neuron_stats.gathered().map(torch.clone)
    # No rounding, whose sign depends on the machine.
    new.layer_first[0, 1] = 0.5

    def merged(new):
        statistics = merging.merge(old, new, remembers=False, settles=True)
        return merging.coordinates(statistics, settles=True)

    fine = merged(new)
    for at in (1, 2):  # an input that varies, and one that does not
        spoiled = new.map(torch.clone)
        spoiled.first[1, at] = bad
        found = merged(spoiled)
        assert not found.mean[1].any()
        assert rule.scale == "layer" or (found.scale[1] == 1).all()
        for actual, expected in zip(found[:2], fine[:2], strict=True):
            actual, expected = (a.expand(4, 5)[[0, 2, 3]] for a in (actual, expected))
            assert torch.equal(actual, expected)


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
    made = dense(rule)
    before, taken = track(made, [(x, g)]), [True]
    for k in range(1, 200):
        after = track(made, [(other + k, g)])
        assert made[0].neuron_stats.count == k + 1
        taken.append(not torch.equal(after.center, before.center))
        before = after
    assert taken == due(every, 200)


def test_a_layer_that_is_called_twice_has_the_statistics_of_both():
    (x, g), (other, h) = batches(2)
    made, whole = dense(), dense()
    layer, optimizer = made
    x, g, other, h = map(torch.tensor, (x, g, other, h))
    ((layer(x) * g).sum() + (layer(other) * h).sum()).backward()
    optimizer.step()
    expected = track(whole, [(torch.cat([x, other]), torch.cat([g, h]))])
    found = merging.moments(layer.neuron_stats.read())
    expected = merging.moments(expected)
    for name in ("mean", "sigma"):
        assert error([getattr(found, name).detach()], [getattr(expected, name)]) <= SAME_STEP


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_an_input_that_hardly_varies_in_one_part(decay):
    """As normalized ones do: the first step is that of the whole batch all the same."""
    (x, g), (other, h) = batches(2)
    x[:, 1] = 0.7 + 5e-4 * x[:, 1]
    x, g, other, h = (torch.tensor(each[:6]) for each in (x, g, other, h))
    made, whole = dense(Rule(decay=decay)), dense(Rule(decay=decay))
    layer, optimizer = made
    ((layer(x) * g).sum() + (layer(other) * h).sum()).backward()
    optimizer.step()
    expected = track(whole, [(torch.cat([x, other]), torch.cat([g, h]))])
    found, expected = (merging.moments(each) for each in (layer.neuron_stats.read(), expected))
    assert found.varies.all()
    for name in ("mean", "sigma"):
        assert error([getattr(found, name).detach()], [getattr(expected, name)]) <= SAME_STEP


@pytest.mark.parametrize("decay", [0.0, 0.5])
@pytest.mark.parametrize(
    ("dtype", "means", "skipped"),
    [
        (torch.float64, (14, 18), False),
        (torch.float64, (250, 260), True),
        (torch.float64, (1e5, 1e5 + 2), True),
        (torch.float32, (12, 14), False),
        (torch.float32, (14, 18), True),
        (torch.float32, (1e3, 1e3 + 2), True),
    ],
)
def test_parts_of_a_first_batch_with_means_far_from_zero(dtype, means, skipped, decay):
    """The step of the whole batch, or none, which is counted; the right one in the next."""
    (x, g), (other, h) = batches(2)
    for part, mean in zip((x, other), means, strict=True):
        part[:, 1] = (part[:, 1] - part[:, 1].mean()) / part[:, 1].std() + mean
    x, g, other, h = (torch.tensor(each, dtype=dtype) for each in (x, g, other, h))
    layers = [torchnorm.Linear(5, 4, gate="silu", rule=Rule(decay=decay), dtype=dtype)]
    layers += [copy.deepcopy(layers[0])]
    optimizers = [sgd(layer, 0.0) for layer in layers]
    for first in (True, False):
        ((layers[0](x) * g).sum() + (layers[0](other) * h).sum()).backward()
        (layers[1](torch.cat([x, other])) * torch.cat([g, h])).sum().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if not skipped or (decay == 0 and not first):  # with a decay one more is remembered
            one, right = (merging.moments(layer.neuron_stats.read()) for layer in layers)
            gate = 2e-3 if dtype == torch.float32 else 1e-9
            for name in ("mean", "sigma"):
                assert error(*([getattr(m, name).detach()] for m in (one, right))) <= gate
            assert one.varies.all()
    assert list(torchnorm.optim.skipped_steps(optimizers[0]).values()) == [int(skipped)]


def test_an_input_that_is_0_now():
    """Summed about what it was before: the rounding of that is no second moment."""
    (x, g), (other, h) = batches(2)
    x[:, 1], other[:, 1] = x[:, 1] + 1e6, 0
    stats = track(dense(), [(x, g), (other, h)])
    found = merging.moments(stats, centered=False).sigma
    expected = merging.moments(track(dense(), [(other, h)]), centered=False).sigma
    assert error([found], [expected]) <= SAME_STEP


@pytest.mark.parametrize("step_size", ["plain", "standardized"])
def test_an_empty_share_of_a_batch_adds_nothing(step_size):
    """No mean, and no call that would halve the knobs."""
    rule = Rule(decay=0.5, step_size=step_size)
    made, whole = dense(rule), dense(rule)
    for x, g in batches(2):
        made[0](torch.tensor(x[:0])).sum().backward()
        made[0](torch.tensor(x)).backward(torch.tensor(g))
        made[1].step()
        made[1].zero_grad()
        expected = track(whole, [(x, g)])
    assert same(track(made, []), expected)


@pytest.mark.parametrize("ratio", [1e3, 1e4])
def test_large_means_in_float32(ratio):
    """How far the step is from that of float64 on the same numbers, by mean / spread."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((64, 5)) + ratio).astype(np.float32)
    g = rng.standard_normal((64, 4)).astype(np.float32)
    steps, found = [], []
    for dtype in (torch.float32, torch.float64):
        layer = torchnorm.Linear(5, 4, gate=None, dtype=dtype)
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        optimizer = sgd(layer, 0.0)
        take(layer, optimizer, x, g)
        optimizer.param_groups[0]["lr"] = 1.0
        take(layer, optimizer, x, g)
        steps.append(layer.weight.detach())
        found.append(merging.moments(layer.neuron_stats.read()))
    for name, gate in (("mean", 2e-7), ("sigma", 5e-6)):
        pair = [[getattr(m, name).detach()] for m in found]
        assert error(*pair) <= gate
    assert error([steps[0]], [steps[1]]) <= 16 * np.finfo(np.float32).eps * ratio


# --- Batches of one -------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [nets.sgd, nets.adam])
def test_batches_of_one_train(make):
    """With decay; the first sample alone has no spread, and must not be divided by epsilon."""
    x, y = nets.data(64, torch.float32)
    model = network(Rule(decay=0.98), torch.float32)
    optimizer = make(model, 0.02)
    before, largest = loss(model, x, y).item(), 0.0
    for _ in range(6):
        for row in range(64):
            old = values(model)
            train(model, optimizer, 1, (x[row : row + 1], y[row : row + 1]))
            largest = max(
                largest,
                *((a - b).abs().max().item() for a, b in zip(old, values(model), strict=True)),
            )
    assert largest < 0.7
    assert loss(model, x, y).item() < 0.7 * before


@pytest.mark.parametrize("make", [nets.sgd, nets.adam])
def test_a_single_sample_without_a_memory(make):
    """Is its own mean: no step, which is counted; with older moments, a step with those."""
    model = network()
    optimizer, before = make(model), values(model)
    train(model, optimizer, 1, nets.data(1))
    assert same(values(model), before)
    assert torchnorm.optim.skipped_steps(optimizer) == {"0": 1, "2": 1}
    train(model, optimizer, 1)
    old = [merging.moments(model[n].neuron_stats.read()) for n in (0, 2)]
    before = values(model)
    train(model, optimizer, 1, nets.data(1))
    new = [merging.moments(model[n].neuron_stats.read()) for n in (0, 2)]
    for a, b in zip(old, new, strict=True):
        assert same((a.mean, a.sigma), (b.mean, b.sigma))
    assert not same(values(model), before)
    assert torchnorm.optim.skipped_steps(optimizer) == {"0": 1, "2": 1}


def test_constant_inputs_are_not_divided_by_epsilon():
    """A layer that reads the same in every sample has no gradient there, but its rounding."""
    torch.manual_seed(0)
    layer = torchnorm.Linear(5, 4, gate=None)
    x = torch.full((8, 5), 1.7) * torch.arange(1, 6) / 3
    optimizer, before = nets.adam(layer, 0.01), values(layer)
    for _ in range(2):
        take(layer, optimizer, x, torch.randn(8, 4))
    assert same([layer.weight.detach()], before[:1])
