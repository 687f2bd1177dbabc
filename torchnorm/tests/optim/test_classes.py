"""`in_neuron_coordinates` takes optimizers of any class, and gives them back as that class."""

import abc
import copy
import pickle
from typing import Generic, TypeVar

import pytest
import torch
from torch import optim

from parity_tests.tolerances import SAME_STEPS
from torchnorm.optim import in_neuron_coordinates
from torchnorm.tests.optim.nets import adam, error, network, same, train, values

T = TypeVar("T")
REGISTRY: dict[str, type] = {}


class Base(abc.ABC, optim.Optimizer):
    """As the optimizers of public collections."""

    @abc.abstractmethod
    def name(self):
        """Of the method."""


class Abstract(Base, optim.Adam):
    """Another first base, another layout."""

    def name(self):
        """Of the method."""
        return "Adam"


class Parametric(Generic[T], optim.Adam):
    """Likewise."""


class Mixin:
    """With attributes of its own."""

    def __init__(self, *args, **kwargs):
        self.mixed = True
        super().__init__(*args, **kwargs)


class Mixed(Mixin, optim.Adam):
    """Likewise."""


class Slots(optim.Adam):
    """With a slot beside the dictionary."""

    __slots__ = ("rate",)


class Meta(abc.ABCMeta):
    """Refuses what it has already."""

    def __new__(cls, name, bases, names):
        """Register the class."""
        if name in REGISTRY:
            raise ValueError(f"{name} is registered already")
        REGISTRY[name] = super().__new__(cls, name, bases, names)
        return REGISTRY[name]


class OfMeta(optim.Adam, metaclass=Meta):
    """In a registry."""


class Registered:
    """Registers subclasses, under the name that they must give."""

    def __init_subclass__(cls, *, alias, **kwargs):
        super().__init_subclass__(**kwargs)
        assert alias not in REGISTRY
        REGISTRY[alias] = cls


class OfRegistry(Registered, optim.Adam, alias="mine"):
    """In a registry."""


class Strict(optim.Adam):
    """Sets no attribute that it does not know."""

    def __setattr__(self, name, value):
        if name not in ("defaults", "state", "param_groups", "step") and name[0] != "_":
            raise AttributeError(name)
        super().__setattr__(name, value)


KINDS = [optim.Adam, Abstract, Parametric, Mixed, Slots, OfMeta, OfRegistry, Strict]


@pytest.mark.parametrize("kind", KINDS)
def test_every_layout_of_a_class(kind):
    """With a scheduler made before, which keeps its wrapper of `step`."""
    model, other = network(), network()
    inner = kind(model.parameters(), 0.03)
    scheduler = optim.lr_scheduler.ConstantLR(inner, 1.0)
    registry = dict(REGISTRY)
    optimizer = in_neuron_coordinates(inner, model)
    assert optimizer is inner
    assert registry == REGISTRY
    assert isinstance(optimizer, kind)
    assert type(optimizer).__name__ == kind.__name__
    expected = adam(other)
    assert same(train(model, optimizer, 2), train(other, expected, 2))
    scheduler.step()
    optimizer.load_state_dict(copy.deepcopy(expected.state_dict()))
    assert error(train(model, optimizer, 2), train(other, expected, 2)) <= SAME_STEPS
    # Another instance of the class, and another subclass, are as ever.
    plain, reference = network(), network()
    found = train(plain, kind(plain.parameters(), 0.03), 2)
    assert same(found, train(reference, optim.Adam(reference.parameters(), 0.03), 2))
    assert not same(found, values(other))
    if kind is OfRegistry:
        with pytest.raises(TypeError, match="alias"):
            type("Further", (kind,), {})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_copies_of_every_layout(kind, way):
    model = network()
    optimizer = in_neuron_coordinates(kind(model.parameters(), 0.03), model)
    train(model, optimizer, 2)
    pair = (model, optimizer)
    copied, its = copy.deepcopy(pair) if way == "deepcopy" else pickle.loads(pickle.dumps(pair))
    assert type(its) is type(optimizer)
    assert same(train(copied, its, 2), train(model, optimizer, 2))


def test_without_layers_the_class_is_its_base():
    """For whoever makes one of ``type(optimizer)``."""
    model, other = network(), network()
    kind = type(adam(network()))
    assert kind is not optim.Adam
    optimizer = kind(model.parameters(), 0.03)
    expected = optim.Adam(other.parameters(), 0.03)
    assert same(train(model, optimizer, 2), train(other, expected, 2))
    optimizer.load_state_dict(optimizer.state_dict())
    copied, its = copy.deepcopy((model, optimizer))
    copied.register_parameter("more", torch.nn.Parameter(torch.zeros(1)))
    its.add_param_group({"params": [copied.more]})
    assert its.state_dict().keys() == expected.state_dict().keys()
    optimizer.step(lambda: None)
