"""Derivatives by the input inside of a loss: physics-informed networks and gradient penalties.

What a layer records is that of its forward call, whatever the loss is of.
"""

import copy

import pytest
import torch
from torch import nn

import torchnorm
from parity_tests.tolerances import GATE, slice_error
from torchnorm.optim import in_neuron_coordinates
from torchnorm.statistics import merging, tracked

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU}


def make(gate):
    """(ours, its optimizer, PyTorch's, x)."""
    torch.manual_seed(0)
    ours = nn.Sequential(
        torchnorm.Linear(3, 6, gate=gate), ACTIVATIONS[gate](), torchnorm.Linear(6, 1, gate=None)
    ).double()
    theirs = nn.Sequential(nn.Linear(3, 6), ACTIVATIONS[gate](), nn.Linear(6, 1)).double()
    theirs.load_state_dict(ours.state_dict())
    optimizer = in_neuron_coordinates(torch.optim.SGD(ours.parameters(), 0.1), ours)
    return ours, optimizer, theirs, torch.randn(12, 3, dtype=torch.float64) + 1


def gradient(model, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(model(x).sum(), x, create_graph=True)[0]


def laplacian(model, x):
    x = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    return sum(
        torch.autograd.grad(slope[:, i].sum(), x, create_graph=True)[0][:, i] for i in range(3)
    )


def mapped(model, x):
    parameters = dict(model.named_parameters())
    u = lambda x: torch.func.functional_call(model, parameters, (x,)).squeeze()  # noqa: E731
    return torch.func.vmap(torch.func.grad(u))(x)


@pytest.mark.parametrize(
    ("gate", "derivative"),
    [("tanh", gradient), ("tanh", laplacian), ("tanh", mapped), ("relu", gradient)],
)
def test_a_forward_call_is_recorded_once(gate, derivative):
    """Also where nothing flows back to z itself: a ReLU, and the last layer."""
    ours, optimizer, theirs, x = make(gate)
    for model in (ours, theirs):
        (derivative(model, x) ** 2).sum().backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        assert a.grad is None or torch.equal(a.grad, b.grad)
    found = [layer.neuron_stats.gathered() for layer in (ours[0], ours[2])]
    assert [f.counted().samples.item() for f in found] == [12, 12]
    moments = [merging.moments(each) for each in found]
    optimizer.zero_grad()
    ours(x).sum().backward()
    for layer, at in zip((ours[0], ours[2]), moments, strict=True):
        expected = merging.moments(layer.neuron_stats.gathered())
        assert slice_error(at.mean, expected.mean) <= GATE["float64"]
        assert slice_error(at.sigma, expected.sigma) <= GATE["float64"]
    optimizer.step()


class Normalized(nn.Module):
    """Layers that are told their gates behind a normalization, and by a sum with the bias."""

    def __init__(self, activation):
        super().__init__()
        self.dense, self.norm = nn.Linear(3, 6), nn.LayerNorm(6)
        self.weight, self.bias = nn.Parameter(torch.randn(6, 5)), nn.Parameter(torch.randn(5))
        self.activation, self.last = activation, nn.Linear(5, 1)

    def forward(self, x):
        """Both."""
        x = self.activation(self.norm(self.dense(x)))
        return self.last(self.activation(x @ self.weight + self.bias))


@pytest.mark.parametrize(
    ("gate", "derivative"),
    [("tanh", gradient), ("tanh", laplacian), ("tanh", mapped), ("relu", gradient)],
)
def test_layers_that_are_told_their_gates(gate, derivative):
    torch.manual_seed(0)
    ours = Normalized(ACTIVATIONS[gate]()).double()
    x, theirs = torch.randn(12, 3, dtype=torch.float64) + 1, copy.deepcopy(ours)
    report = torchnorm.convert(ours, x)
    assert [(row.gate, row.deferred) for row in report.rows] == [
        (gate, False),
        (gate, True),
        (None, False),
    ]
    optimizer = in_neuron_coordinates(torch.optim.SGD(ours.parameters(), 0.1), ours)
    for model in (ours, theirs):
        (derivative(model, x) ** 2).sum().backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        assert a.grad is None or torch.equal(a.grad, b.grad)
    name = "neuron_stats"
    optimizer.step()
    once = copy.deepcopy(optimizer.state_dict()[name])
    ours.load_state_dict(theirs.state_dict())
    other = in_neuron_coordinates(torch.optim.SGD(ours.parameters(), 0.1), ours)
    ours(x).sum().backward()
    other.step()
    for layer, fields in other.state_dict()[name].items():
        at, expected = (merging.moments(tracked.Statistics(**f)) for f in (once[layer], fields))
        assert slice_error(at.mean, expected.mean) <= GATE["float64"]
        assert slice_error(at.sigma, expected.sigma) <= GATE["float64"]
