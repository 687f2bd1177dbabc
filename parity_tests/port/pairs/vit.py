"""A vision transformer's block with patch embedding and head: nnx beside PyTorch."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch import nn
from torch.nn import functional as F


def attend(query: jax.Array, key: jax.Array, value: jax.Array, **_: Any) -> jax.Array:
    """Softmax attention in the dtype of its inputs; the scores of Flax's are float32."""
    scores = jnp.einsum("nqhd,nkhd->nhqk", query, key) / query.shape[-1] ** 0.5
    return jnp.einsum("nhqk,nkhd->nqhd", jax.nn.softmax(scores, axis=-1), value)


class FlaxEncoderBlock(nnx.Module):
    """Attention and two dense layers, each normalized first and added."""

    def __init__(
        self, width: int, heads: int, ratio: int, eps: float, dropout: float, *, rngs: nnx.Rngs
    ) -> None:
        self.norm1 = nnx.LayerNorm(width, epsilon=eps, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            heads, width, decode=False, attention_fn=attend, rngs=rngs
        )
        self.norm2 = nnx.LayerNorm(width, epsilon=eps, rngs=rngs)
        self.linear1 = nnx.Linear(width, ratio * width, rngs=rngs)
        self.linear2 = nnx.Linear(ratio * width, width, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, T, width] to the same."""
        x = x + self.dropout(self.attention(self.norm1(x)))
        y = jax.nn.gelu(self.linear1(self.norm2(x)), approximate=False)
        return x + self.dropout(self.linear2(y))


class FlaxViT(nnx.Module):
    """Images [N, H, W, C] to logits."""

    def __init__(
        self,
        *,
        channels: int,
        size: int,
        patch: int,
        width: int,
        heads: int,
        depth: int,
        ratio: int,
        classes: int,
        eps: float,
        dropout: float,
        rngs: nnx.Rngs,
    ) -> None:
        self.patches = nnx.Conv(channels, width, (patch, patch), patch, padding="VALID", rngs=rngs)
        tokens = (size // patch) ** 2
        initial = nnx.initializers.normal(0.02)
        self.class_token = nnx.Param(initial(rngs.params(), (1, 1, width)))
        self.positions = nnx.Param(initial(rngs.params(), (1, tokens + 1, width)))
        self.blocks = nnx.List(
            [FlaxEncoderBlock(width, heads, ratio, eps, dropout, rngs=rngs) for _ in range(depth)]
        )
        self.norm = nnx.LayerNorm(width, epsilon=eps, rngs=rngs)
        self.head = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The logits [N, classes] of the class token."""
        x = self.patches(x)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        first = jnp.broadcast_to(self.class_token[...], (x.shape[0], 1, x.shape[-1]))
        x = jnp.concatenate([first, x], axis=1) + self.positions[...]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))


class TorchAttention(nn.Module):
    """Self-attention with a layer for each of queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, T, width] to the same."""

        def split(y: torch.Tensor) -> torch.Tensor:
            return y.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        query, key, value = split(self.query(x)), split(self.key(x)), split(self.value(x))
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        y = torch.softmax(scores, dim=-1) @ value
        return self.out(y.transpose(1, 2).flatten(2))


class TorchEncoderBlock(nn.Module):
    """As `FlaxEncoderBlock`."""

    def __init__(self, width: int, heads: int, ratio: int, eps: float, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attention = TorchAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.linear1 = nn.Linear(width, ratio * width)
        self.linear2 = nn.Linear(ratio * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, T, width] to the same."""
        x = x + self.dropout(self.attention(self.norm1(x)))
        y = F.gelu(self.linear1(self.norm2(x)))
        return x + self.dropout(self.linear2(y))


class TorchViT(nn.Module):
    """Images [N, C, H, W] to logits."""

    def __init__(
        self,
        *,
        channels: int,
        size: int,
        patch: int,
        width: int,
        heads: int,
        depth: int,
        ratio: int,
        classes: int,
        eps: float,
        dropout: float,
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.class_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, (size // patch) ** 2 + 1, width))
        self.blocks = nn.ModuleList(
            TorchEncoderBlock(width, heads, ratio, eps, dropout) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=eps)
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The logits [N, classes] of the class token."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))


CONFIGURATION = {
    "channels": 3,
    "size": 8,
    "batch": 2,
    "patch": 4,
    "width": 8,
    "heads": 2,
    "depth": 1,
    "ratio": 2,
    "classes": 5,
    "eps": 1e-6,
    "dropout": 0.1,
}


def flax_model(*, batch: int, **knobs: Any) -> FlaxViT:
    """The network in nnx."""
    return FlaxViT(**knobs, rngs=nnx.Rngs(0, dropout=1))


def torch_model(*, batch: int, **knobs: Any) -> TorchViT:
    """The same in PyTorch."""
    return TorchViT(**knobs)


def inputs(seed: int, *, channels: int, size: int, batch: int, **_: Any) -> np.ndarray:
    """Images [N, C, H, W]."""
    return np.random.default_rng(seed).normal(size=(batch, channels, size, size))


def random_configuration(rng: np.random.Generator) -> dict[str, Any]:
    """Other knobs, as small."""
    patch, heads = int(rng.choice([2, 4])), int(rng.choice([1, 2, 4]))
    return {
        "channels": int(rng.integers(1, 4)),
        "size": 2 * patch,
        "batch": int(rng.integers(1, 4)),
        "patch": patch,
        "width": 4 * heads if heads < 4 else 8,
        "heads": heads,
        "depth": int(rng.integers(1, 3)),
        "ratio": int(rng.integers(1, 4)),
        "classes": int(rng.integers(2, 6)),
        "eps": float(rng.choice([1e-6, 1e-5, 1e-3])),
        "dropout": float(rng.choice([0.0, 0.1])),
    }
