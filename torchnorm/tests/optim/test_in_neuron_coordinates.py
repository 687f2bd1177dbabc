"""`torchnorm.optim.in_neuron_coordinates`: any inner optimizer, and what a step is made of."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import torchnorm
from parity_tests.oracle import Knobs
from parity_tests.tolerances import GATE, LOCK_STEP, SAME_STEP, SAME_STEPS, VISIBLE
from torchnorm import Rule
from torchnorm.optim import in_neuron_coordinates
from torchnorm.tests.optim import nets
from torchnorm.tests.optim.nets import (
    STEPS,
    adam,
    data,
    error,
    initial,
    loss,
    moments,
    network,
    reference,
    same,
    sgd,
    train,
    values,
)

optim = torch.optim
INNER = {
    "sgd": (optim.SGD, {"lr": 0.01}),
    "momentum": (optim.SGD, {"lr": 0.01, "momentum": 0.9, "dampening": 0.1}),
    "nesterov": (optim.SGD, {"lr": 0.01, "momentum": 0.9, "nesterov": True}),
    "sgd with L2": (optim.SGD, {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1}),
    "maximized": (optim.SGD, {"lr": 0.001, "maximize": True}),
    "adam": (optim.Adam, {"lr": 0.03}),
    "adam with L2": (optim.Adam, {"lr": 0.03, "amsgrad": True, "weight_decay": 0.1}),
    "adamw": (optim.AdamW, {"lr": 0.03, "weight_decay": 0.1}),
    "nadam": (optim.NAdam, {"lr": 0.03}),
    "radam": (optim.RAdam, {"lr": 0.03}),
    "adamax": (optim.Adamax, {"lr": 0.03}),
    "adadelta": (optim.Adadelta, {"lr": 0.3}),
    "rmsprop": (optim.RMSprop, {"lr": 0.01, "momentum": 0.5, "centered": True}),
    "adagrad": (optim.Adagrad, {"lr": 0.03, "initial_accumulator_value": 0.1}),
    "adafactor": (optim.Adafactor, {"lr": 0.03}),
    "rprop": (optim.Rprop, {"lr": 0.003}),
}
FUSED = ("sgd", "momentum", "sgd with L2", "adam", "adam with L2", "adamw", "adagrad")


def all_of(kind, kwargs):
    """One optimizer of all parameters."""
    return lambda layers: [kind([p for layer in layers for p in layer], **kwargs)]


def check(model, optimizers, expected, close=LOCK_STEP):
    """The parameters after each of a few steps."""
    x, y = data()
    for _, right in zip(range(STEPS), expected, strict=False):
        loss(model, x, y).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        assert error(values(model), right) <= close
    assert error(values(model), [p for layer in initial() for p in layer]) > VISIBLE


@pytest.mark.parametrize("name", INNER)
def test_every_inner_optimizer(name):
    kind, kwargs = INNER[name]
    model = network()
    optimizer = in_neuron_coordinates(kind(model.parameters(), **kwargs), model)
    assert isinstance(optimizer, kind)
    check(model, [optimizer], reference(all_of(kind, kwargs)))


@pytest.mark.parametrize("form", ["foreach", "fused", "capturable off"])
@pytest.mark.parametrize("name", FUSED)
def test_other_forms_of_the_inner_optimizer(name, form):
    kind, kwargs = INNER[name]
    more = {form: True} if form != "capturable off" else {"foreach": False}
    model = network()
    optimizer = in_neuron_coordinates(kind(model.parameters(), **kwargs, **more), model)
    check(model, [optimizer], reference(all_of(kind, kwargs)))


@pytest.mark.parametrize(
    "knobs", [{"scale": "layer"}, {"scale": "none"}, {"weighting": "uniform"}, {"shrinkage": 0.0}]
)
def test_every_kind_of_moments(knobs):
    model, (kind, kwargs) = network(Rule(**knobs, statistics_every=1)), INNER["adamw"]
    optimizer = in_neuron_coordinates(kind(model.parameters(), **kwargs), model)
    check(model, [optimizer], reference(all_of(kind, kwargs), Knobs(**knobs)))


def weights_and_biases(model):
    """The model's (weight, bias) pairs."""
    return [(model[0].weight, model[0].bias), (model[2].weight, model[2].bias)]


def by_muon(layers):
    """The weights by Muon, which takes matrices only; the biases by SGD."""
    weights, biases = zip(*layers, strict=True)
    return [optim.Muon(weights, lr=0.02), optim.SGD(biases, lr=0.01)]


@pytest.mark.skipif(not hasattr(optim, "Muon"), reason="torch < 2.9")
def test_muon_has_the_weights_and_another_the_biases():
    """Second moments about zero then. Muon's own products are in bfloat16: hence the gate."""
    model, plain = network(), network()
    muon, rest = by_muon(weights_and_biases(model))
    expected = reference(by_muon, centered=False)
    check(model, [in_neuron_coordinates(muon, model), rest], expected, 0.01)
    loss(plain, *data()).backward()
    for optimizer in by_muon(weights_and_biases(plain)):
        optimizer.step()
    assert error(values(plain), next(reference(by_muon, centered=False))) > 0.05


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_bias_of_another_optimizer_is_not_moved(name):
    """Nothing can absorb a mean: second moments about zero, and the bias is the other's alone."""
    kind, kwargs = INNER[name]
    model = network()
    weights, biases = zip(*weights_and_biases(model), strict=True)
    inner, rest = kind(weights, **kwargs), optim.SGD(biases, 0.01)

    def make(layers):
        weights, biases = zip(*layers, strict=True)
        return [kind(weights, **kwargs), optim.SGD(biases, 0.01)]

    check(model, [in_neuron_coordinates(inner, model), rest], reference(make, centered=False))


def test_sgd_is_the_stateless_form():
    model, other = network(), network(Rule(gradient="preconditioned"))
    expected = train(other, optim.SGD(other.parameters(), 0.1), 1)
    assert error(train(model, sgd(model, 0.1), 1), expected) <= GATE["float64"]


def test_step_size_is_a_rate_of_the_weight():
    """With SGD, one for each neuron: the mean of its sigma^2."""
    trained = []
    for size in ("plain", "standardized"):
        model = network(Rule(step_size=size))
        trained.append(train(model, sgd(model, 0.1), 1))
    found = moments(initial(), data()[0], Knobs(step_size="standardized"), centered=True)
    for n, ((weight, _), (mean, sigma)) in enumerate(zip(initial(), found, strict=True)):
        rate = (sigma**2).mean(1, keepdim=True)
        plain, absolute = (after[2 * n] - weight for after in trained)
        assert (rate - 1).abs().min() > 0.1
        assert error([plain], [rate * absolute]) <= SAME_STEP
        # What the weight moves a mean by, the bias makes up for; its own step is the same.
        moved = [
            after[2 * n + 1] + (mean * step).sum(1)
            for after, step in zip(trained, (plain, absolute), strict=True)
        ]
        assert error([moved[0]], [moved[1]]) <= SAME_STEP


@pytest.mark.parametrize("name", ["adamw", "sgd with L2"])
def test_decay_acts_on_the_original_parameters(name):
    """Exactly: lr * weight_decay of each, mean and sigma notwithstanding."""
    steps = []
    for strength in (0.0, 0.2):
        model, (kind, kwargs) = network(), INNER[name]
        kwargs = kwargs | {"weight_decay": strength}
        optimizer = in_neuron_coordinates(kind(model.parameters(), **kwargs), model)
        steps.append(train(model, optimizer, 1))
    rate = INNER[name][1]["lr"] * 0.2
    expected = [p * rate for layer in initial() for p in layer]
    assert error([a - b for a, b in zip(*steps, strict=True)], expected) <= SAME_STEPS


# --- Whose parameters, which rates ----------------------------------------------------------------


def around(model):
    """The model with other people's layers."""
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "embed": nn.Embedding(7, 5, dtype=torch.float64),
            "norm": nn.LayerNorm(5, dtype=torch.float64),
            "ours": model,
        }
    )


def run(model, rows, y):
    return loss(lambda i: model["ours"](model["norm"](model["embed"](i))), rows, y)


@pytest.mark.parametrize("kwargs", [{}, {"foreach": True}, {"fused": True}], ids=str)
def test_parameters_of_other_layers_are_stepped_as_ever(kwargs):
    """Bit for bit, with the same gradients and over several steps."""
    rows, (_, y) = torch.arange(24) % 7, data()
    model, plain = around(network()), around(network(kind=nn.Linear))
    plain.load_state_dict(model.state_dict())
    ours = adam(model, **kwargs)
    theirs = optim.Adam(plain.parameters(), 0.03, **kwargs)
    for _ in range(3):
        ours.zero_grad()
        run(model, rows, y).backward()
        for mine, other in zip(model.parameters(), plain.parameters(), strict=True):
            other.grad = mine.grad.clone()
        ours.step()
        theirs.step()
        for name in ("embed", "norm"):
            assert same(model[name].parameters(), plain[name].parameters())
        assert not torch.equal(model["ours"][0].weight, plain["ours"][0].weight)


def groups(layers):
    return [{"params": layers[0], "lr": 0.01}, {"params": layers[1], "lr": 0.05, "momentum": 0.9}]


def test_groups_have_their_own_rates():
    model = network()
    optimizer = in_neuron_coordinates(optim.SGD(groups(weights_and_biases(model)), 1.0), model)
    check(model, [optimizer], reference(lambda layers: [optim.SGD(groups(layers), 1.0)]))


def test_a_group_that_comes_later_is_in_the_coordinates_too():
    """The usual way of unfreezing layers."""
    model, whole = network(), network()
    optimizer = in_neuron_coordinates(optim.Adam(model[2].parameters(), 0.03), model)
    optimizer.add_param_group({"params": list(model[0].parameters())})
    assert same(train(model, optimizer), train(whole, adam(whole)))


@pytest.mark.parametrize("accumulated", [4, 24])
@pytest.mark.parametrize("weighting", ["gate", "error"])
def test_micro_batches_are_the_whole_batch(accumulated, weighting):
    """Of one sample each at last, which has no statistics by itself."""
    x, y = data()
    model, whole = network(Rule(weighting=weighting)), network(Rule(weighting=weighting))
    one, all_of_it = adam(model), adam(whole)
    for _ in range(2):
        for rows in np.array_split(np.arange(24), accumulated):
            loss(model, x[rows], y[rows]).backward()
        loss(whole, x, y).backward()
        for optimizer in (one, all_of_it):
            optimizer.step()
            optimizer.zero_grad()
        assert error(values(model), values(whole)) <= SAME_STEP


def test_clipping_before_the_step_clips_plain_gradients():
    model, plain = network(), network(kind=nn.Linear)
    x, y = data()
    optimizer = sgd(model)
    norms = []
    for each in (model, plain):
        loss(each, x, y).backward()
        norms.append(nn.utils.clip_grad_norm_(each.parameters(), 0.5))
    assert torch.equal(*norms)
    assert norms[0] > 1
    assert same([p.grad for p in model.parameters()], [p.grad for p in plain.parameters()])
    short = values(model)
    optimizer.step()
    moved = [b - a for a, b in zip(short, values(model), strict=True)]
    whole = network()
    before = values(whole)
    unclipped = [b - a for a, b in zip(before, train(whole, sgd(whole), 1), strict=True)]
    expected = [v * 0.5 / (norms[0] + 1e-6) for v in unclipped]
    assert error(moved, expected) <= SAME_STEPS


def test_gradients_are_the_plain_ones_before_and_after_the_step():
    model = network()
    optimizer = adam(model)
    loss(model, *data()).backward()
    before = [p.grad for p in model.parameters()]
    copies = copy.deepcopy(before)
    optimizer.step()
    assert all(p.grad is g for p, g in zip(model.parameters(), before, strict=True))
    assert same(before, copies)


# --- Layouts --------------------------------------------------------------------------------------


def convnet(dtype=torch.float64):
    """Convolutions of all kinds."""
    torch.manual_seed(0)
    kwargs = {"dtype": dtype, "gate": "silu"}
    return nn.Sequential(
        torchnorm.Conv2d(4, 8, 3, padding=1, groups=2, **kwargs),
        nn.SiLU(),
        torchnorm.ConvTranspose2d(8, 6, 3, stride=2, groups=2, **kwargs),
        nn.SiLU(),
        torchnorm.Conv2d(6, 3, (2, 3), stride=2, **kwargs),
        nn.SiLU(),
    )


def images(dtype=torch.float64):
    """A batch with its targets."""
    torch.manual_seed(1)
    return torch.randn(3, 4, 6, 5, dtype=dtype) * 2 + 1, torch.zeros((), dtype=dtype)


@pytest.mark.parametrize("form", ["foreach", "fused"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("kind", [optim.AdamW, optim.SGD])
def test_layouts_and_forms(kind, memory_format, form):
    """A fused kernel walks through the memory: gradients must lie as their parameters do."""
    given = images()
    plain, model = convnet(), convnet().to(memory_format=memory_format)
    simple = in_neuron_coordinates(kind(plain.parameters(), 0.01, foreach=False), plain)
    expected = train(plain, simple, 3, given)
    seen = []

    class Spied(kind):
        def step(self, closure=None):
            seen.extend(p.grad.stride() == p.stride() for p in model.parameters())
            super().step(closure)

    optimizer = in_neuron_coordinates(Spied(model.parameters(), 0.01, **{form: True}), model)
    actual = train(model, optimizer, 3, (given[0].to(memory_format=memory_format), given[1]))
    assert all(seen)
    assert seen
    assert error(actual, expected) <= SAME_STEP


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(dtype):
    """Statistics in float32; the parameters move as far as those of float64, within rounding."""
    model, exact = network(dtype=dtype), network(Rule())
    x, y = data()
    with torch.no_grad():
        for p, q in zip(exact.parameters(), model.parameters(), strict=True):
            p.copy_(q)
    found = []
    for each, d in ((model, dtype), (exact, torch.float64)):
        before = values(each)
        optimizer = sgd(each, 0.003)
        after = train(each, optimizer, 1, (x.to(dtype).to(d), y.to(dtype).to(d)))
        assert each[0].neuron_stats.read().center.dtype == torch.promote_types(d, torch.float32)
        found.append([(a - b).double() for a, b in zip(after, before, strict=True)])
    assert error(*found) <= 40 * torch.finfo(dtype).eps


def test_the_helpers_are_not_the_code_under_test():
    assert "torchnorm" not in (nets.moments.__code__.co_names + nets.reference.__code__.co_names)
