"""Everything comes off again: by `remove`, and by itself with the optimizer."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn, optim

import torchnorm
from torchnorm import Rule
from torchnorm.optim import (
    bnp,
    centralize,
    in_neuron_coordinates,
    quasi_diagonal,
    remove,
)
from torchnorm.tests.optim.nets import adam, loss, network, same, train, values

TOOLS = {
    "in_neuron_coordinates": in_neuron_coordinates,
    "bnp": bnp,
    "quasi_diagonal": quasi_diagonal,
    "centralize": centralize,
}
each_tool = pytest.mark.parametrize("tool", TOOLS.values(), ids=TOOLS)


def hooks(thing):
    """How many hooks there are."""
    parts = list(thing.modules()) if isinstance(thing, nn.Module) else [thing]
    found = (value for part in parts for name, value in vars(part).items() if "hooks" in name)
    return sum(len(value) for value in found if isinstance(value, dict))


def is_plain(model, optimizer=None):
    """Whether nothing of ours is left."""
    stats = [module.neuron_stats for module in model if hasattr(module, "neuron_stats")]
    return not (any(stats) or hooks(model) or (optimizer is not None and hooks(optimizer)))


def plain_adam(model, tool, steps=0):
    """Adam, with something on it, that has made some steps."""
    optimizer = tool(optim.Adam(model.parameters(), 0.03), model)
    train(model, optimizer, steps)
    return optimizer


@each_tool
def test_what_is_removed_is_gone(tool):
    """The class, hooks and statistics; then it is a plain optimizer, and can have others."""
    model, other = network(), network()
    plain = set(vars(optim.Adam(other.parameters())))
    optimizer = plain_adam(model, tool)
    assert not is_plain(model, optimizer)
    assert remove(optimizer) is optimizer
    assert type(optimizer) is optim.Adam
    assert is_plain(model, optimizer)
    assert set(vars(optimizer)) == plain
    expected = optim.Adam(other.parameters(), 0.03)
    assert same(train(model, optimizer, 2), train(other, expected, 2))
    assert optimizer.state_dict().keys() == expected.state_dict().keys()
    with pytest.raises(ValueError, match=r"got one that has nothing of torchnorm.optim on it"):
        remove(optimizer)


def test_several_are_removed_at_once():
    model = network()
    optimizer = optim.SGD(model.parameters(), 0.01)
    for tool in (centralize, bnp, quasi_diagonal, centralize):
        tool(optimizer, model)
    remove(optimizer)
    assert is_plain(model, optimizer)


@pytest.mark.parametrize("kind", [optim.Adam, optim.SGD, optim.Adagrad])
def test_momentum_in_the_coordinates_is_dropped(kind):
    """It is no use outside of them; but what the optimizer has made at first is there."""
    model, other = network(), network()
    kwargs = {"momentum": 0.9} if kind is optim.SGD else {}
    optimizer = in_neuron_coordinates(kind(model.parameters(), 0.01, **kwargs), model)
    train(model, optimizer, 3)
    remove(optimizer)
    other.load_state_dict(model.state_dict())
    fresh = kind(other.parameters(), 0.01, **kwargs)
    assert same(train(model, optimizer, 2), train(other, fresh, 2))


def test_of_other_parameters_the_momentum_stays():
    model, other = network(), network()
    more, mores = (nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(2))
    optimizer = in_neuron_coordinates(optim.Adam([*model.parameters(), more], 0.1), model)
    expected = optim.Adam([*other.parameters(), mores], 0.1)
    for its, parameter in ((optimizer, more), (expected, mores)):
        for k in range(4):
            its.zero_grad()
            parameter.grad = torch.tensor([1.0, k], dtype=torch.float64)
            its.step()
            if k == 1 and its is optimizer:
                remove(its)
    assert torch.equal(more, mores)


@pytest.mark.parametrize("before", [True, False])
def test_schedulers_go_on(before):
    """Made before or after; its warning of a lost count would be an error here."""
    model, other = network(), network()
    optimizer = optim.Adam(model.parameters(), 0.03)
    if before:
        scheduler = optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    in_neuron_coordinates(optimizer, model)
    if not before:
        scheduler = optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    remove(optimizer)
    expected = optim.Adam(other.parameters(), 0.03)
    for _ in range(3):
        train(model, optimizer, 1)
        scheduler.step()
        train(other, expected, 1)
        expected.param_groups[0]["lr"] *= 0.5
    assert same(values(model), values(other))


def test_a_second_one_after_the_first():
    """Removed, dropped, or replaced: with statistics of its own."""
    model, fresh = network(Rule(decay=0.9)), network(Rule(decay=0.9))
    for end in (remove, lambda _: None, lambda _: gc.collect()):
        optimizer = adam(model)
        train(model, optimizer, 2)
        end(optimizer)
        del optimizer
        fresh.load_state_dict(model.state_dict())
        again, its = adam(model), adam(fresh)
        assert same(train(model, again, 2), train(fresh, its, 2))


def test_the_first_ones_end_is_nothing_to_the_second():
    model = network()
    first, second = adam(model), adam(model)
    assert model[0].neuron_stats is not None
    del first
    assert model[0].neuron_stats is not None
    train(model, second, 1)
    removed = adam(model)
    with pytest.raises(ValueError, match="got none of this optimizer's in '0'"):
        train(model, second, 1)
    remove(second)
    train(model, removed, 1)


@each_tool
def test_an_optimizer_that_is_dropped_costs_nothing(tool):
    """At once, without the cyclic collector; also with a scheduler, and after steps."""
    gc.collect()
    gc.disable()
    try:
        model, other = network(), network()
        for before in (False, True):
            optimizer = optim.Adam(model.parameters(), 0.03)
            if before:
                scheduler = optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
            tool(optimizer, model)
            if not before:
                scheduler = optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
            train(model, optimizer, 2)
            scheduler.step()
            gone = weakref.ref(optimizer)
            del optimizer, scheduler
            assert gone() is None
            assert is_plain(model)
        other.load_state_dict(model.state_dict())
        plain = [optim.SGD(each.parameters(), 0.01) for each in (model, other)]
        assert same(train(model, plain[0], 2), train(other, plain[1], 2))
    finally:
        gc.enable()


@each_tool
def test_a_failed_attempt_leaves_nothing(tool):
    """And an optimizer of other parameters stays as it was."""
    model, other = network(), network()
    optimizer = optim.SGD(other.parameters(), 0.1)
    if tool is not centralize:
        with pytest.raises(ValueError, match=r"optimizer: got (none of )?the weight"):
            tool(optimizer, model)
        assert is_plain(model, optimizer)
        assert type(optimizer) is optim.SGD
    assert is_plain(other)


@each_tool
def test_a_model_that_is_copied_is_plain(tool):
    """A copy of the model alone records for nobody."""
    model = network()
    optimizer = plain_adam(model, tool, 1)
    other = copy.deepcopy(model)
    assert not any(module.neuron_stats for module in other if hasattr(module, "neuron_stats"))
    loss(other, *[torch.ones(2, n, dtype=torch.float64) for n in (5, 3)]).backward()
    remove(optimizer)


def test_what_cannot_be_removed():
    model = network()
    optimizer = adam(model)
    with pytest.raises(TypeError, match=r"optimizer: got Sequential, expected a torch.optim one"):
        remove(model)
    optimizer.step = lambda: None
    with pytest.raises(ValueError, match=r"step\(\) was replaced.*call remove before what replac"):
        remove(optimizer)
    del optimizer.step
    remove(optimizer)
    assert torchnorm.optim.remove is remove
