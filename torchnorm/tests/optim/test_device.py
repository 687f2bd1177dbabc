"""A step on a device waits for nothing: no value is read, and nothing is copied from the CPU.

On the meta device, which has shapes but no values: to read one there is an error.
"""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import torchnorm
from torchnorm.optim import in_neuron_coordinates


def dense(rule):
    layers = [torchnorm.Linear(6, 6, gate=gate, rule=rule) for gate in ("relu", "gelu", None)]
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.GELU(), layers[2]), (8, 6)


def convolutions(rule):
    first = torchnorm.Conv2d(2, 4, 3, padding=1, gate="relu", rule=rule)
    up = torchnorm.ConvTranspose2d(4, 4, 2, stride=2, bias=False, gate="relu", rule=rule)
    last = torchnorm.Conv2d(4, 3, 1, groups=1, gate=None, rule=rule)
    return nn.Sequential(first, nn.ReLU(), up, nn.ReLU(), last), (4, 2, 5, 5)


class OneDevice(TorchDispatchMode):
    """Refuses to compute with what is elsewhere, or to copy it to the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, found)) if isinstance(t, torch.Tensor)]
        assert all(t.is_meta for t in tensors), func
        return found


@pytest.mark.parametrize(
    ("net", "age", "rule"),
    [
        (dense, 1, {}),
        (dense, 16, {}),
        (convolutions, 1, {}),
        (convolutions, 16, {}),
        (dense, 16, {"decay": 0.9}),
        (dense, 16, {"statistics_rows": 2, "scale": "layer"}),
    ],
)
def test_no_value_is_waited_for(net, age, rule):
    with torch.device("meta"):
        model, shape = net(torchnorm.Rule(**rule))
        x = torch.empty(shape)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    layers = in_neuron_coordinates(optimizer, model)._neuronwise
    for step in range(2):  # as after the first steps, which look at what the optimizer does
        layers.checked = True
        for layer in layers.layers.values():
            layer.stats.usable = True
            layer.stats.set_count(1000, age)
        if step == 0:
            model(x).square().mean().backward()
            optimizer.step()
    with OneDevice():
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
