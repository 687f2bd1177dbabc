"""`prepare`: one call does what `convert` and `in_neuron_coordinates` do, or nothing at all."""

import copy
import inspect

import pytest
import torch
from torch import nn

import torchnorm
from torchnorm import Rule
from torchnorm.optim import in_neuron_coordinates
from torchnorm.tests.optim.nets import adam, data, network, same, train


class Net(nn.Module):
    """Convolution, normalization and a head, with a hook and a buffer of their own."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4)
        self.head = nn.Linear(12, 3)
        self.norm.register_forward_hook(lambda module, args, out: None)

    def forward(self, x):
        """Run it."""
        return self.head(torch.relu(self.norm(self.conv(x[:, None]))).flatten(1)).mean()


def plain():
    return network(kind=nn.Linear)


def parts(model, optimizer):
    """What a set-up could change: classes, attributes and hooks of both."""
    modules = [
        (type(module), sorted(vars(module)), list(module._forward_hooks.values()))
        for module in model.modules()
    ]
    groups = [
        {**group, "params": list(map(id, group["params"]))} for group in optimizer.param_groups
    ]
    return modules, type(optimizer), sorted(vars(optimizer)), groups, dict(optimizer.state)


@pytest.mark.parametrize("rule", [Rule(), Rule(decay=0.9, weighting="uniform")])
def test_one_call_is_the_two(rule):
    model, other = plain(), plain()
    optimizer = torch.optim.Adam(model.parameters(), 0.03)
    prepared = torchnorm.prepare(model, optimizer, data()[0], rule=rule)
    report = torchnorm.convert(other, data()[0], rule=rule)
    assert prepared == (model, optimizer)
    assert prepared.model is model
    assert prepared.optimizer is optimizer
    assert prepared.report == report
    assert str(prepared) == str(report)
    assert same(train(*prepared, 3), train(other, adam(other), 3))


def test_every_option_of_both_is_taken():
    """By the same names and with the same defaults, so that none is forgotten later."""
    taken = dict(inspect.signature(torchnorm.prepare).parameters)
    for function in (torchnorm.convert, in_neuron_coordinates):
        for name, parameter in inspect.signature(function).parameters.items():
            assert taken[name].default == parameter.default, name
    model = plain()
    optimizer = torch.optim.Adam(model.parameters(), 0.03)
    report = torchnorm.prepare(model, optimizer, gates={"*": "silu"}, skip="2").report
    assert [row.converted for row in report.rows] == [True, False]


@pytest.mark.parametrize(
    ("spoil", "kind", "text"),
    [
        ({"rule": "neuron"}, TypeError, "rule: got"),
        ({"rule": Rule(gradient="preconditioned")}, ValueError, "gradient='preconditioned'"),
        ({"rule": torchnorm.PLAIN}, ValueError, "no layer records statistics"),
        ({"gates": {"nowhere": "relu"}}, ValueError, "matches no layer"),
        ({"skip": "nowhere"}, ValueError, "skip: got 'nowhere'"),
        ({"skip": "*"}, ValueError, "no layer records statistics"),
        ({"example_input": torch.ones(2, 2)}, ValueError, "example_input: got"),
        ({"optimizer": None}, TypeError, "optimizer: got NoneType"),
        ({"optimizer": torch.optim.LBFGS}, ValueError, "got LBFGS"),
        ({"optimizer": "biases"}, ValueError, "none of the weights"),
        ({"optimizer": "stepped"}, ValueError, "optimizer: got"),
        ({"optimizer": "wrapped"}, ValueError, "in neuron coordinates already"),
        ({"model": None}, TypeError, "model: got NoneType"),
    ],
)
def test_a_failure_leaves_both_as_they_were(spoil, kind, text):
    net = Net().double()
    given = {"model": net, "example_input": data(8)[0], **spoil}
    which = given.pop("optimizer", torch.optim.SGD)
    if which == "biases":
        optimizer = torch.optim.SGD([net.head.bias], 0.1)
    elif which == "stepped":
        optimizer = torch.optim.Adam(net.parameters(), 0.1)
        net(data(8)[0]).backward()
        optimizer.step()
    elif which == "wrapped":
        layer = torchnorm.Linear(2, 2, gate=None)
        optimizer = in_neuron_coordinates(torch.optim.SGD(layer.parameters(), 0.1), layer)
    else:
        optimizer = which and which(net.parameters(), 0.1)
    before = optimizer and parts(net, optimizer)
    state = copy.deepcopy(net.state_dict())
    with pytest.raises(kind, match=text):
        torchnorm.prepare(optimizer=optimizer, **given)
    assert not optimizer or parts(net, optimizer) == before
    assert same(net.state_dict().values(), state.values())


def test_a_class_that_cannot_be_changed(monkeypatch):
    """Not the optimizer's statistics without its step."""
    model = plain()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = parts(model, optimizer)
    monkeypatch.setattr("torchnorm.optim.wrapped_class._in_coordinates", lambda *args: int)
    with pytest.raises(TypeError, match="__class__ assignment"):
        torchnorm.prepare(model, optimizer, data()[0])
    assert parts(model, optimizer) == before


def test_another_optimizer_of_a_prepared_model():
    """As in a second fit; with other options it is converted already."""
    model, other = plain(), plain()
    options = {"rule": Rule(decay=0.5)}
    first = torchnorm.prepare(model, torch.optim.SGD(model.parameters(), 0.1), data()[0], **options)
    inner = torch.optim.Adam(model.parameters(), 0.03)
    second = torchnorm.prepare(model, inner, data()[0], **options)
    assert second.report is first.report
    torchnorm.convert(other, data()[0], **options)
    assert same(train(*second, 2), train(other, adam(other), 2))
    third = torch.optim.Adam(model.parameters(), 0.03)
    with pytest.raises(ValueError, match=r"converted already.*call torchnorm\.revert\(model\)"):
        torchnorm.prepare(model, third, data()[0])
    with pytest.raises(ValueError, match="got LBFGS"):
        torchnorm.prepare(model, torch.optim.LBFGS(model.parameters()), data()[0], **options)
    assert type(model[0]) is torchnorm.Linear
    torchnorm.revert(model)
    torchnorm.prepare(model, third, data()[0])


def test_two_optimizers_of_one_model():
    """Of an actor and its critic, say: each has the layers whose weights it learns."""
    model, other = plain(), plain()
    torchnorm.convert(other, data()[0])
    halves = []
    for net, wrap in (
        (model, lambda sgd: torchnorm.prepare(model, sgd, data()[0]).optimizer),
        (other, lambda sgd: in_neuron_coordinates(sgd, other)),
    ):
        both = [wrap(torch.optim.SGD(net[n].parameters(), 0.01)) for n in (0, 2)]
        for _ in range(2):
            net.zero_grad()
            net(data()[0]).square().sum().backward()
            for optimizer in both:
                optimizer.step()
        halves.append(list(net.parameters()))
    assert same(*halves)
