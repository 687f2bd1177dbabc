"""Many layers at once take the steps that they take one by one, and so without any shortcut."""

import sys

import pytest
import torch
from torch import nn

import torchnorm
from torchnorm.optim import in_neuron_coordinates, together
from torchnorm.tests.optim.nets import values

OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
    "adam, foreach": lambda p: torch.optim.Adam(p, 0.01, foreach=True),
    "adam, fused": lambda p: torch.optim.Adam(p, 0.01, fused=True),
    "adam, a tensor for its rate": lambda p: torch.optim.AdamW(p, torch.tensor(0.01)),
    "sgd": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9),
    "groups": lambda p: torch.optim.AdamW(
        [{"params": p[::2], "lr": 0.02}, {"params": p[1::2], "weight_decay": 0}], 0.01
    ),
}


class Net(nn.Module):
    """Layers that lie in several ways, with and without a bias."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.up = nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2)
        self.mix = nn.ConvTranspose2d(6, 6, 2)
        self.hidden = nn.Linear(6, 5, bias=False)
        self.last = nn.Linear(5, 3)

    def forward(self, x):
        """Map [N, 2, 3, 3] to [N, 49, 3]."""
        z = self.mix(self.up(self.first(x).relu()).relu()).relu().flatten(2).transpose(1, 2)
        return self.last(torch.tanh(self.hidden(z)))


def run(optimizer, steps=24):
    """The parameters after some steps, in which much is 0 that need not be."""
    torch.manual_seed(0)
    x, y = torch.randn(12, 2, 3, 3, dtype=torch.float64), torch.randn(12, 49, 3).double()
    x[:, 1] = 2.0
    model = Net().double()
    torchnorm.convert(model, x)
    optimizer = in_neuron_coordinates(optimizer(list(model.parameters())), model)
    model.hidden.weight.register_hook(lambda g: g * (torch.arange(6) != 1))
    model.last.bias.register_hook(lambda g: g * (torch.arange(3) != 2))
    for step in range(steps):
        if step == 20:
            for layer in optimizer._neuronwise.layers.values():
                layer.stats.set_count(1000, 1)
        optimizer.zero_grad()
        ((model(x) - y) ** 2).mean().backward()
        if step % 4 == 3:  # a bias without a gradient, whose momentum moves it, or does not
            model.first.bias.grad[:2] = 0
        optimizer.step()
    return values(model)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("known", [True, False])
def test_many_layers_at_once(monkeypatch, name, known):
    taken, entered = [], together.enter
    if not known:  # as on a device for which nobody waits
        for module, found in list(sys.modules.items()):
            if module.startswith("torchnorm.") and hasattr(found, "at_hand"):
                monkeypatch.setattr(found, "at_hand", lambda values: False)
    monkeypatch.setattr(together, "enter", lambda *a: taken.append(len(a[0])) or entered(*a))
    found = run(OPTIMIZERS[name])
    # All but the transposed one in groups, whose [O, I, ...] is a copy.
    assert taken[-1] == 4
    monkeypatch.undo()
    monkeypatch.setattr(together, "fits", lambda *_: False)
    for a, b in zip(found, run(OPTIMIZERS[name]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_as_many_as_there_is_room_for(monkeypatch):
    monkeypatch.setattr(together, "_ENTRIES", 40)
    found = run(OPTIMIZERS["adamw"])
    monkeypatch.undo()
    for a, b in zip(found, run(OPTIMIZERS["adamw"]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_a_step_that_fails_leaves_all_as_it_was(monkeypatch):
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(layer.parameters())
    torchnorm.prepare(layer, optimizer, torch.randn(8, 3))
    for fails in (False, True):
        optimizer.zero_grad()
        layer(torch.randn(8, 3)).square().sum().backward()
        if not fails:
            optimizer.step()
    before, grad = values(layer), layer.weight.grad
    monkeypatch.setitem(optimizer.param_groups[0], "betas", None)
    with pytest.raises(TypeError):
        optimizer.step()
    assert all(map(torch.equal, values(layer), before))
    assert layer.weight.grad is grad
