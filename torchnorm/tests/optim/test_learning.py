"""What does not learn does not move, nothing makes up for it; decay is of the originals."""

import pytest
import torch
from torch import nn

import torchnorm
from parity_tests.tolerances import GATE, SAME_STEP, VISIBLE
from torchnorm.optim import in_neuron_coordinates
from torchnorm.statistics import merging
from torchnorm.tests.optim.nets import data, error, loss, network, same, train, values

RATE = 0.1
RATE_TENSOR = torch.tensor(RATE, dtype=torch.float64)


def adam(model, **kwargs):
    return in_neuron_coordinates(torch.optim.Adam(model.parameters(), RATE, **kwargs), model)


def groups(model, **biases):
    """Weights, and biases with settings of their own."""
    parts = [[p for p in model.parameters() if (p.ndim == 1) == is_bias] for is_bias in (0, 1)]
    return [{"params": parts[0]}, {"params": parts[1], **biases}]


def zero_rate(model):
    return torch.optim.Adam(groups(model, lr=0.0), RATE)


def zero_rate_tensor(model):
    return torch.optim.Adam(groups(model, lr=0 * RATE_TENSOR), RATE_TENSOR, foreach=False)


def not_learned(model):
    return torch.optim.Adam(groups(model)[:1], RATE)


def no_gradient(model):
    for layer in (model[0], model[2]):
        layer.bias.requires_grad_(False)
    return torch.optim.Adam(model.parameters(), RATE)


def zeroed_by_a_hook(model):
    for layer in (model[0], model[2]):
        layer.bias.register_hook(torch.zeros_like)
    return torch.optim.Adam(model.parameters(), RATE)


WAYS = [zero_rate, zero_rate_tensor, not_learned, no_gradient, zeroed_by_a_hook]


@pytest.mark.parametrize("way", WAYS)
def test_biases_that_do_not_learn(way):
    """Nothing can absorb a mean: second moments about zero, and no bias moves."""
    model, expected = network(), network()
    before = values(model)
    train(model, in_neuron_coordinates(way(model), model), 3)
    train(expected, in_neuron_coordinates(no_gradient(expected), expected), 3)
    assert same(values(model)[1::2], before[1::2])
    assert error(values(model)[::2], values(expected)[::2]) <= GATE["float64"]
    assert error(values(model)[::2], before[::2]) > VISIBLE


@pytest.mark.parametrize("inner", ["Adam", "NAdam", "Adamax", "SGD"])
@pytest.mark.parametrize("some", [False, True])
def test_frozen_biases_of_neurons_that_are_not_active(inner, some):
    """By momentum their weights move, and a bias that never learned does not make up for it."""
    kwargs = {"momentum": 0.9} if inner == "SGD" else {}
    torch.manual_seed(0)
    model = nn.Sequential(torchnorm.Linear(5, 8, gate="relu"), nn.ReLU(), nn.Linear(8, 3)).double()
    learns = torch.arange(8) % 3 == 0 if some else torch.zeros(8, dtype=torch.bool)
    model[0].bias.register_hook(lambda g: g * learns)
    before = model[0].bias.detach().clone()
    optimizer = getattr(torch.optim, inner)(model.parameters(), 0.03, **kwargs)
    in_neuron_coordinates(optimizer, model)
    idle = 0
    for _ in range(20):
        optimizer.zero_grad()
        (model(torch.randn(3, 5, dtype=torch.float64) + 1) ** 2).mean().backward()
        weight = model[0].weight.detach().clone()
        still = ~model[0].weight.grad.any(1)
        optimizer.step()
        idle += int(((model[0].weight != weight).any(1) & still & ~learns).sum())
    assert idle  # moved by momentum alone
    assert torch.equal(model[0].bias[~learns], before[~learns])
    assert (model[0].bias[learns] != before[learns]).all()


def test_a_rate_of_zero_for_all():
    """As a warm-up begins: nothing moves, and the gradient is that in the coordinates."""
    model, other = network(), network()
    optimizer, expected = adam(model), adam(other)
    before = values(model)
    optimizer.param_groups[0]["lr"] = 0.0
    train(model, optimizer, 1)
    assert same(values(model), before)
    optimizer.param_groups[0]["lr"] = RATE
    train(other, expected, 1)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(optimizer.state[p]["exp_avg"], expected.state[q]["exp_avg"])


@pytest.mark.parametrize("kwargs", [{}, {"amsgrad": True}])
def test_entries_that_are_masked(kwargs):
    """By a hook: they stay; the others are as if those were no inputs at all."""
    mask = torch.ones(8, 5, dtype=torch.float64)
    mask[:, 1], mask[::2, 3] = 0, 0
    model, whole = network(), network()
    model[0].weight.register_hook(lambda g: g * mask)
    before = values(model)
    for each in (model, whole):
        train(each, adam(each, **kwargs), 1)
    moved, expected = ((values(each)[0] - before[0]) for each in (model, whole))
    assert not moved[mask == 0].any()
    assert error([moved], [expected * mask]) <= GATE["float64"]


def test_nothing_makes_up_for_masked_entries():
    mask = torch.ones(8, 5, dtype=torch.float64)
    mask[:, 1], mask[::2, 3] = 0, 0
    model, whole = network(), network()
    model[0].weight.register_hook(lambda g: g * mask)
    optimizers = adam(model), adam(whole)
    before = values(model)
    for each, optimizer in zip((model, whole), optimizers, strict=True):
        train(each, optimizer, 1)
    mean = merging.moments(whole[0].neuron_stats.read()).mean.detach()
    step = values(whole)[0] - before[0]
    expected = values(whole)[1] + (mean * step * (1 - mask)).sum(1)
    assert error([values(model)[1]], [expected]) <= SAME_STEP


def test_a_head_that_is_not_used():
    """It stays, whether its gradient is None or zero."""

    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.used = network()[0], network()[2]
            self.other = network()[2]

        def forward(self, x, weight=0.0):
            h = nn.functional.silu(self.body(x))
            return self.used(h) + weight * self.other(h) if weight is not None else self.used(h)

    for weight in (None, 0.0):
        model, before = Heads(), values(Heads())
        optimizer = adam(model)
        x, y = data()
        for _ in range(2):
            optimizer.zero_grad()
            ((model(x, weight) - y) ** 2).sum().backward()
            optimizer.step()
        assert same(values(model)[4:], before[4:])
        assert not same(values(model)[:4], before[:4])


def test_an_expert_without_a_token():
    """In the first step: it stays; in a later one, or with one token: its old moments."""
    model, x = nn.ModuleList([network()[0], network()[0]]), data()[0]
    optimizer = adam(model)

    def step(tokens):
        optimizer.zero_grad()
        outputs = [model[0](x), model[1](x[:tokens])]
        sum((out**2).sum() for out in outputs).backward()
        optimizer.step()

    before = values(model)
    for tokens, skipped in ((0, 1), (1, 2)):
        step(tokens)
        assert same(values(model)[2:], before[2:])
        assert torchnorm.optim.skipped_steps(optimizer)["1"] == skipped
    step(20)
    moments = merging.moments(model[1].neuron_stats.read())
    for tokens in (0, 1):
        old = values(model)
        step(tokens)
        now = merging.moments(model[1].neuron_stats.read())
        assert same([now.mean, now.sigma], [moments.mean, moments.sigma])
        assert not same(values(model)[2:], old[2:])  # momentum, and one token's gradient
    assert torchnorm.optim.skipped_steps(optimizer) == {"0": 0, "1": 2}
    assert all(p.isfinite().all() for p in model.parameters())


DECAYS = {
    "AdamW": lambda g: torch.optim.AdamW(g, RATE),
    "AdamW, foreach": lambda g: torch.optim.AdamW(g, RATE, foreach=True),
    "AdamW, fused": lambda g: torch.optim.AdamW(g, RATE, fused=True),
    "AdamW, tensor rate": lambda g: torch.optim.AdamW(g, RATE_TENSOR, foreach=False),
    "Adam, decoupled": lambda g: torch.optim.Adam(g, RATE, decoupled_weight_decay=True),
    "NAdam, decoupled": lambda g: torch.optim.NAdam(g, RATE, decoupled_weight_decay=True),
    "SGD": lambda g: torch.optim.SGD(g, RATE),
    "SGD, momentum": lambda g: torch.optim.SGD(g, RATE, momentum=0.9),
    "SGD, nesterov": lambda g: torch.optim.SGD(g, RATE, momentum=0.9, nesterov=True),
    "SGD, maximize": lambda g: torch.optim.SGD(g, RATE, momentum=0.9, maximize=True),
}


@pytest.mark.parametrize("name", DECAYS)
@pytest.mark.parametrize("of", [(0.5, 0.0), (0.5, 0.5), (0.0, 0.5), (0.5, 0.1)])
def test_decay_is_that_of_the_originals(name, of):
    """Exactly, and of those that are asked for: the bias does not make up for it."""
    found, start = [], values(network())
    for decays in (of, (0.0, 0.0)):
        model = network()
        both = groups(model)
        for group, decay in zip(both, decays, strict=True):
            group["weight_decay"] = decay
        train(model, in_neuron_coordinates(DECAYS[name](both), model), 1)
        found.append(values(model))
    rate = RATE * (1.9 if "nesterov" in name else 1)
    for n, (a, b, p) in enumerate(zip(*found, start, strict=True)):
        assert (a - b + rate * of[n % 2] * p).abs().max() <= SAME_STEP


def test_decay_with_a_gradient_of_zero():
    """The usual two groups, for several steps."""
    model, plain = network(), network(kind=nn.Linear)
    x, _ = data()
    for each in (model, plain):
        both = groups(each, weight_decay=0.0)
        optimizer = torch.optim.AdamW(both, RATE, weight_decay=0.5)
        if each is model:
            optimizer = in_neuron_coordinates(optimizer, model)
        for _ in range(3):
            optimizer.zero_grad()
            (0 * each(x)).sum().backward()
            optimizer.step()
    assert error(values(model), values(plain)) <= GATE["float64"]


def test_a_step_that_the_scaler_skips_decays_nothing():
    """A fused optimizer is told by a tensor."""
    model = network(dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.5, fused=True)
    optimizer = in_neuron_coordinates(optimizer, model)
    before = values(model)
    x, y = data(dtype=torch.float32)
    loss(model, x, y).backward()
    optimizer.grad_scale, optimizer.found_inf = torch.ones(()), torch.ones(())
    optimizer.step()
    assert same(values(model), before)
