"""The timed networks in PyTorch, layer by layer those of `networks_jax`."""

import torch
from torch import nn
from torch.nn import functional as F

from experiments.bench.networks import BLOCKS, HEADS, HIDDEN, OUTPUTS, Network


class RowsNorm(nn.BatchNorm1d):
    """BatchNorm over samples and tokens, for [N, T, C]."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalize each channel."""
        return super().forward(input.flatten(0, -2)).view_as(input)


def make_norm(kind: str | None, width: int, batch_norm: type[nn.Module]) -> nn.Module:
    """The normalizer of that name."""
    if kind == "batchnorm":
        return batch_norm(width)
    return nn.LayerNorm(width) if kind == "layernorm" else nn.Identity()


class MLP(nn.Sequential):
    """Dense layers and ReLU: [N, I] to [N, O]."""

    def __init__(self, width: int, normalizer: str | None) -> None:
        layers: list[nn.Module] = []
        for _ in range(HIDDEN):
            norm = make_norm(normalizer, width, nn.BatchNorm1d)
            layers += [nn.Linear(width, width), norm, nn.ReLU()]
        super().__init__(*layers, nn.Linear(width, OUTPUTS))


class Block(nn.Module):
    """Attention and an MLP with GELU, a normalizer in front of each."""

    def __init__(self, width: int, normalizer: str | None) -> None:
        super().__init__()
        kind = normalizer or "layernorm"
        self.first, self.second = (make_norm(kind, width, RowsNorm) for _ in range(2))
        self.queries, self.keys, self.values, self.read = (
            nn.Linear(width, width) for _ in range(4)
        )
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [N, T, C] to [N, T, C]."""
        z = self.first(x)
        count, length, width = z.shape
        queries, keys, values = (
            layer(z).view(count, length, HEADS, -1).transpose(1, 2)
            for layer in (self.queries, self.keys, self.values)
        )
        read = F.scaled_dot_product_attention(queries, keys, values)
        x = x + self.read(read.transpose(1, 2).reshape(count, length, width))
        return x + self.down(F.gelu(self.up(self.second(x)), approximate="tanh"))


class Transformer(nn.Sequential):
    """Blocks, a normalizer, a dense layer: [N, T, C] to [N, T, C]."""

    def __init__(self, width: int, normalizer: str | None) -> None:
        blocks = [Block(width, normalizer) for _ in range(BLOCKS["transformer"])]
        norm = make_norm(normalizer or "layernorm", width, RowsNorm)
        super().__init__(*blocks, norm, nn.Linear(width, width))


class Residual(nn.Module):
    """Two convolutions beside the identity."""

    def __init__(self, width: int, normalizer: str | None) -> None:
        super().__init__()
        self.one, self.two = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.first, self.second = (make_norm(normalizer, width, nn.BatchNorm2d) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [N, C, H, W] to [N, C, H, W]."""
        z = F.relu(self.first(self.one(x)))
        return F.relu(x + self.second(self.two(z)))


class ResNet(nn.Module):
    """Residual blocks, and a dense layer behind the mean over the image."""

    def __init__(self, width: int, normalizer: str | None) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Residual(width, normalizer) for _ in range(BLOCKS["resnet"])))
        self.output = nn.Linear(width, OUTPUTS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [N, C, H, W] to [N, O]."""
        return self.output(self.blocks(x).mean((2, 3)))


KINDS = {"mlp": MLP, "transformer": Transformer, "resnet": ResNet}


def build(network: Network, normalizer: str | None) -> nn.Module:
    """The module."""
    return KINDS[network.kind](network.width, normalizer)


def inputs_of(network: Network) -> tuple[int, ...]:
    """The shape of a batch, as PyTorch has it: channels of images first."""
    shape = network.input_shape
    return (shape[0], shape[-1], *shape[1:-1]) if network.kind == "resnet" else shape
