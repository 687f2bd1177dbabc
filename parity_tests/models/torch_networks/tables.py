"""Networks for tables, of rtdl, and small ones of our own with a reputation."""

from __future__ import annotations

import importlib
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from parity_tests.models.tasks import moons, table
from parity_tests.models.torch_networks import model
from parity_tests.models.torch_networks.build import library
from parity_tests.models.torch_networks.model import glu, itself, normal, several, there

Model = partial(model.Model, needs=("rtdl_revisiting_models",), task=table())
_rtdl = partial(library, "rtdl_revisiting_models")


def _transformer() -> nn.Module:
    rtdl = importlib.import_module("rtdl_revisiting_models")
    settings = rtdl.FTTransformer.get_default_kwargs(n_blocks=1)
    settings |= {"d_block": 16, "attention_n_heads": 2}
    return rtdl.FTTransformer(n_cont_features=5, cat_cardinalities=[3, 4], d_out=1, **settings)


def _columns() -> tuple[torch.Tensor, ...]:
    kinds = torch.stack([torch.randint(0, 3, (12,)), torch.randint(0, 4, (12,))], 1)
    return torch.randn(12, 5, dtype=torch.float64), kinds


def _periodic() -> nn.Module:
    embeddings = importlib.import_module("rtdl_num_embeddings")
    return nn.Sequential(
        embeddings.PeriodicEmbeddings(5, 8, lite=False),
        nn.Flatten(),
        nn.Linear(40, 16),
        nn.ReLU(),
        nn.Linear(16, 1),
    )


class Coupling(nn.Module):
    """Half of the numbers, scaled and moved by what a network makes of the others."""

    def __init__(self, flip: bool) -> None:
        super().__init__()
        self.flip = flip
        self.net = nn.Sequential(nn.Linear(1, 32), nn.ReLU(), nn.Linear(32, 2))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The numbers and the logarithm of the determinant."""
        seen, moved = x.flip(1).chunk(2, 1) if self.flip else x.chunk(2, 1)
        scale, shift = self.net(seen).chunk(2, 1)
        scale = torch.tanh(scale)
        parts = [seen, moved * scale.exp() + shift]
        return torch.cat(parts[::-1] if self.flip else parts, 1), scale[:, 0]


class Flow(nn.Module):
    """RealNVP: its output is minus the logarithm of the density of each point."""

    def __init__(self) -> None:
        super().__init__()
        self.couplings = nn.ModuleList(Coupling(bool(k % 2)) for k in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Minus the log-density."""
        total = 0.5 * 2 * torch.log(torch.tensor(2 * torch.pi, dtype=x.dtype))
        for coupling in self.couplings:
            x, scale = coupling(x)
            total = total - scale
        return total + 0.5 * (x**2).sum(1)


def _near_zero() -> nn.Module:
    """An MLP whose weights are close to zero in the beginning."""
    net = nn.Sequential(nn.Linear(5, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=1e-3)
    return net


MODELS = (
    Model(
        "MLP (rtdl)",
        _rtdl("MLP", d_in=5, d_out=1, n_blocks=2, d_block=16, dropout=0.1),
        normal(12, 5),
        {"*.linear": itself(F.relu)},
    ),
    Model(
        "ResNet (rtdl)",
        _rtdl(
            "ResNet",
            d_in=5,
            d_out=1,
            n_blocks=2,
            d_block=16,
            d_hidden=24,
            d_hidden_multiplier=None,
            dropout1=0.1,
            dropout2=0.0,
        ),
        normal(12, 5),
        {
            "*.linear1": itself(F.relu),
            "blocks.1.linear2": there(F.relu, "output.normalization"),
            "*": several,
        },
    ),
    Model(
        "FT-Transformer (rtdl)",
        _transformer,
        _columns,
        {"*ffn.linear1": glu(F.relu, 1), "*ffn.linear2": several, "*W_out": several},
        task=table(categories=(3, 4)),
    ),
    Model(
        "periodic embeddings (rtdl)",
        _periodic,
        normal(12, 5),
        {"2": itself(F.relu)},
        needs=("rtdl_num_embeddings",),
    ),
    model.Model(
        "flow",
        Flow,
        normal(12, 2),
        {"*net.0": itself(F.relu)},
        task=moons(),
    ),
    model.Model(
        "near-zero weights",
        _near_zero,
        normal(12, 5),
        {"0": itself(F.relu), "2": itself(F.relu)},
        task=table(),
    ),
)
