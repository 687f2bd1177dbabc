"""A program in float32 on the CPU; PyTorch's default device and dtype are those of its arguments.

`test_defaults.py` runs it: what forgets to say where a tensor lies ends on the default device.
"""

import sys
from typing import Any

import torch

torch.set_default_device(sys.argv[1])
torch.set_default_dtype(getattr(torch, sys.argv[2]))

from torch import nn  # noqa: E402

import torchnorm  # noqa: E402
from torchnorm import analysis, masks, normalizers  # noqa: E402
from torchnorm.normalizers import standardize  # noqa: E402

HERE: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float32}
GENERATOR = torch.Generator("cpu").manual_seed(0)
OPTIMIZERS = (
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}),
    (torch.optim.Adam, {"lr": 0.1}),
    (torch.optim.AdamW, {"lr": 0.1}),
)
LAYERS = (
    "BatchRenorm OnlineNorm SwitchableNorm AttentiveNorm InstanceEnhancementBatchNorm MixtureNorm "
    "ModeNorm StochasticNorm"
)


def randn(*shape: int) -> torch.Tensor:
    """Random numbers."""
    return torch.randn(*shape, generator=GENERATOR, **HERE)


def trained(optimizer: type, options: dict[str, float]) -> float:
    """The sum of the parameters after three steps, of a model that was converted."""
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, **HERE),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 4, **HERE),
        nn.Tanh(),
        nn.Linear(4, 2, **HERE),
    )
    for parameter in net.parameters():
        parameter.data = randn(*parameter.shape)
    x = randn(8, 3, 4, 4)
    torchnorm.convert(net, x)
    step = torchnorm.optim.in_neuron_coordinates(optimizer(net.parameters(), **options), net)
    for _ in range(3):
        step.zero_grad()
        with masks.neuron_mask(torch.ones(8, **HERE)):
            net(x).square().mean().backward()
        step.step()
    return sum(float(parameter.detach().sum()) for parameter in net.parameters())


for each in OPTIMIZERS:
    print(trained(*each))
for rule in (torchnorm.Rule(gradient="preconditioned"), torchnorm.BNP, torchnorm.CENTERED):
    layer = torchnorm.Linear(3, 4, gate="relu", rule=rule, **HERE)
    layer(randn(6, 3)).relu().sum().backward()
for name in LAYERS.split():
    norm = getattr(normalizers, name)(3, **HERE)
    norm(randn(6, 3, 4, 4).requires_grad_()).sum().backward()
standardize.apply(randn(3, 2), standardize.fit(randn(3, 2)))
blocks = analysis.neuron_blocks(randn(8, 3), randn(8, 2).abs(), mean=0.5, sigma=2.0)
print(float(analysis.condition_numbers(blocks).sum()))
parameters = {"w": randn(4)}
print(float(analysis.lanczos(lambda v: {"w": 2 * v["w"]}, parameters, 2).values.sum()))
