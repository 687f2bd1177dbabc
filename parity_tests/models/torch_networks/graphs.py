"""Graph networks of PyTorch Geometric."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from parity_tests.models.tasks import communities, molecules
from parity_tests.models.torch_networks import model
from parity_tests.models.torch_networks.build import library
from parity_tests.models.torch_networks.model import itself, there

Model = partial(model.Model, needs=("torch_geometric",), task=communities())
#: 5 features, 8 hidden ones, two convolutions, three classes.
_SIZES = (5, 8, 2, 3)
_geometric = partial(library, "torch_geometric.nn")


def graph() -> dict[str, torch.Tensor]:
    """Twelve nodes and forty edges."""
    nodes = torch.randn(12, 5, dtype=torch.float64)
    return {"x": nodes, "edge_index": torch.randint(0, 12, (2, 40))}


def atoms() -> dict[str, torch.Tensor]:
    """Two molecules of six atoms."""
    positions = 2 * torch.randn(12, 3, dtype=torch.float64)
    return {"z": torch.randint(1, 9, (12,)), "pos": positions, "batch": torch.arange(12) // 6}


class GPS(nn.Module):
    """Message passing and attention beside each other."""

    def __init__(self) -> None:
        super().__init__()
        layers = importlib.import_module("torch_geometric.nn")
        inner = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        self.encoder = layers.Linear(5, 8)
        self.conv = layers.GPSConv(8, layers.GINConv(inner), heads=2)
        self.head = layers.MLP([8, 8, 3])

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        """Class scores of the nodes."""
        return self.head(self.conv(self.encoder(x), edge_index))


class Pairs(nn.Module):
    """All atoms of a molecule that are near: what SchNet needs, without a compiled library."""

    def forward(self, pos: torch.Tensor, batch: torch.Tensor) -> Any:
        """Edges and their lengths."""
        apart = (pos[:, None] - pos).norm(dim=-1)
        near = (batch[:, None] == batch) & (apart < 10) & ~torch.eye(len(pos), dtype=torch.bool)
        edges = near.nonzero().T
        return edges, apart[edges[0], edges[1]]


def _sch_net() -> nn.Module:
    layers = importlib.import_module("torch_geometric.nn")
    sizes = {"hidden_channels": 8, "num_filters": 8, "num_interactions": 2, "num_gaussians": 6}
    return layers.SchNet(**sizes, interaction_graph=Pairs())


MODELS = (
    Model("GCN (PyG)", _geometric("GCN", *_SIZES), graph, {}),
    Model(
        "GraphSAGE (PyG)",
        _geometric("GraphSAGE", *_SIZES),
        graph,
        {"convs.0.lin_?": there(F.relu, "convs.0")},
    ),
    Model(
        "GIN (PyG)",
        _geometric("GIN", *_SIZES),
        graph,
        {"convs.0.*": itself(F.relu), "*.lins.0": itself(F.relu)},
    ),
    Model("GAT (PyG)", _geometric("GAT", *_SIZES, v2=True, heads=2), graph, {}),
    Model(
        "PNA (PyG)",
        _geometric(
            "PNA",
            *_SIZES,
            aggregators=["mean", "max"],
            scalers=["identity"],
            deg=torch.tensor([0, 2, 5, 3, 2]),
        ),
        graph,
        {"convs.0.lin": itself(F.relu)},
    ),
    Model(
        "GPS (PyG)",
        GPS,
        graph,
        {
            "*.nn.0": itself(F.relu),
            "*.mlp.0": itself(F.relu),
            "head.lins.0": there(F.relu, "head.norms.0"),
        },
    ),
    Model(
        "SchNet (PyG)",
        _sch_net,
        atoms,
        {
            "*mlp.0": itself(F.softplus),
            "*conv.lin2": itself(F.softplus),
            "lin1": itself(F.softplus),
        },
        task=molecules(),
    ),
)
