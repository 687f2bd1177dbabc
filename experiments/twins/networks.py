"""The networks of the studies in PyTorch, with the names that Flax gives their layers."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import jaxnorm
import torchnorm
from experiments.networks.layers import BATCHNORM_DECAY
from experiments.networks.transformer import Transformer as FlaxTransformer

#: What Flax and JAX take where it is not said, and PyTorch does otherwise.
EPSILON = {"batchnorm": 1e-5, "layernorm": 1e-6}


class Network(nn.Module):
    """Layers by name, made in the order in which Flax numbers them.

    Args:
        rule: of all linear layers; None for PyTorch's.
    """

    def __init__(self, rule: jaxnorm.Rule | None) -> None:
        super().__init__()
        self.rule = None if rule is None else torchnorm.Rule(**asdict(rule))
        self.layers = nn.ModuleDict()

    def add(self, kind: str, layer: nn.Module) -> nn.Module:
        """The layer, under the next name of its kind."""
        number = sum(name.startswith(f"{kind}_") for name in self.layers)
        self.layers[f"{kind}_{number}"] = layer
        return layer

    def linear(self, *sizes: int, gate: str | None, **options: Any) -> nn.Module:
        """A dense layer of two sizes, or a convolution of three."""
        name = "Conv2d" if len(sizes) == 3 else "Linear"
        package: Any = nn if self.rule is None else torchnorm
        if self.rule is not None:
            options |= {"gate": gate, "rule": self.rule}
        kind = "Conv" if name == "Conv2d" else "Dense"
        return self.add(kind, getattr(package, name)(*sizes, **options))

    def load(self, params: Mapping[str, Any]) -> None:
        """The parameters of the Flax network."""
        named = dict(self.named_parameters())
        for path, value in _flat(params):
            *_, layer, leaf = ("", *path)
            name = f"layers.{layer}.{_NAMES[leaf]}" if layer else leaf
            named.pop(name).data.copy_(torch.tensor(_to_torch(np.asarray(value), leaf)))
        assert not named, f"{sorted(named)} are not in the Flax network"


_NAMES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}


def _flat(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> list[tuple[Any, Any]]:
    pairs = []
    for name, value in tree.items():
        deeper = isinstance(value, Mapping)
        pairs += _flat(value, (*path, name)) if deeper else [((*path, name), value)]
    return pairs


def _to_torch(value: np.ndarray, leaf: str) -> np.ndarray:
    if leaf != "kernel":
        return value
    return value.T if value.ndim == 2 else value.transpose(3, 2, 0, 1)


class ConvNet(Network):
    """As `experiments.networks.convnet.ConvNet`, of an instance of which it is made."""

    def __init__(self, network: Any, inputs: int) -> None:
        super().__init__(network.rule)
        self.image, self.halved = network.image, network.halved
        side, channels = self.image
        self.norms, self.convolutions, self.dense = [], [], []
        activation = network.activation
        side //= 1 + self.halved
        for width in network.channels:
            options = {"stride": 2, "gate": activation}
            self.convolutions.append(self.linear(channels, width, 3, **options))
            self._normalize(network.normalizer, width, nn.BatchNorm2d)
            side, channels = -(-side // 2), width
        inputs = channels * side**2 if network.channels else inputs
        for width in network.widths:
            self.dense.append(self.linear(inputs, width, gate=activation))
            self._normalize(network.normalizer, width, nn.BatchNorm1d)
            inputs = width
        self.output = self.linear(inputs, network.outputs, gate=None)
        self.activation = getattr(F, activation)

    def _normalize(self, normalizer: Any, width: int, kind: Any) -> None:
        if normalizer is not None:
            norm = kind(width, eps=EPSILON["batchnorm"], momentum=1 - BATCHNORM_DECAY)
            self.norms.append(self.add("BatchNorm", norm))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map inputs [N, I] to outputs [N, O]."""
        norms = iter(self.norms)

        def after(z: torch.Tensor) -> torch.Tensor:
            return self.activation(next(norms)(z) if self.norms else z)

        if self.convolutions:
            side, channels = self.image
            x = x.view(-1, side, side, channels).permute(0, 3, 1, 2)
            x = F.avg_pool2d(x, 2) if self.halved else x
        for layer in self.convolutions:
            odd = x.shape[-1] % 2
            x = after(layer(F.pad(x, (odd, 1, odd, 1))))
        if self.convolutions:
            x = x.permute(0, 2, 3, 1).flatten(1)
        for layer in self.dense:
            x = after(layer(x))
        return self.output(x)


class Transformer(Network):
    """As `experiments.networks.transformer.Transformer`, of an instance of which it is made."""

    def __init__(self, network: FlaxTransformer, length: int) -> None:
        super().__init__(network.rule)
        self.heads, width = network.heads, network.width
        self.embed = self.add("Embed", nn.Embedding(network.outputs, width))
        self.positions = nn.Parameter(torch.zeros(length, width))
        self.blocks = []
        for _ in range(network.blocks):
            read, *projections = (self.linear(width, width, gate=None) for _ in range(4))
            up = self.linear(width, 4 * width, gate="gelu_tanh")
            down = self.linear(4 * width, width, gate=None)
            norms = [self._norm(network, width) for _ in range(2)]
            self.blocks.append((norms, read, projections, up, down))
        self.output = self.linear(width, network.outputs, gate=None)
        self.last = self._norm(network, width)

    def _norm(self, network: FlaxTransformer, width: int) -> nn.Module:
        if network.normalizer is None:
            return nn.Identity()
        return self.add("LayerNorm", nn.LayerNorm(width, eps=EPSILON["layernorm"]))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map characters [N, T] to logits [N, T, K]."""
        x = self.embed(tokens) + self.positions
        for (first, second), read, projections, up, down in self.blocks:
            x = x + read(self._attention(first(x), projections))
            x = x + down(F.gelu(up(second(x)), approximate="tanh"))
        return self.output(self.last(x))

    def _attention(self, x: torch.Tensor, projections: list[nn.Module]) -> torch.Tensor:
        count, length, width = x.shape
        queries, keys, values = (
            layer(x).view(count, length, self.heads, -1).transpose(1, 2) for layer in projections
        )
        scores = queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1])
        future = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        read = scores.masked_fill(future, -1e9).softmax(-1) @ values
        return read.transpose(1, 2).reshape(count, length, width)


def twin_of(network: Any, inputs: tuple[int, ...]) -> Network:
    """The PyTorch network for a Flax network, not loaded yet.

    Args:
        network: a ConvNet or a Transformer.
        inputs: shape of a sample.
    """
    if isinstance(network, FlaxTransformer):
        return Transformer(network, *inputs)
    return ConvNet(network, *inputs)
