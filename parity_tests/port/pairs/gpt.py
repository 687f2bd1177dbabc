"""A language model of GPT's kind: linen beside PyTorch; causal, tied or untied head, tanh GELU."""

from typing import Any

import flax.linen as fnn
import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class FlaxBlock(fnn.Module):
    """Causal attention and two dense layers, each normalized first and added."""

    width: int
    heads: int
    ratio: int
    eps: float
    dropout: float

    @fnn.compact
    def __call__(self, x: jax.Array, deterministic: bool = True) -> jax.Array:
        """[N, T, width] to the same."""
        n, t, width = x.shape
        y = fnn.LayerNorm(epsilon=self.eps, name="ln_1")(x)
        y = fnn.Dense(3 * width, name="c_attn")(y)
        query, key, value = (
            part.reshape(n, t, self.heads, -1).transpose(0, 2, 1, 3)
            for part in jnp.split(y, 3, axis=-1)
        )
        scores = query @ key.transpose(0, 1, 3, 2) / jnp.sqrt(query.shape[-1])
        seen = jnp.tril(jnp.ones((t, t), bool))
        scores = jnp.where(seen[None, None], scores, jnp.finfo(scores.dtype).min)
        y = jax.nn.softmax(scores, axis=-1) @ value
        y = y.transpose(0, 2, 1, 3).reshape(n, t, width)
        y = fnn.Dense(width, name="c_proj")(y)
        x = x + fnn.Dropout(self.dropout)(y, deterministic=deterministic)
        y = fnn.LayerNorm(epsilon=self.eps, name="ln_2")(x)
        y = fnn.Dense(self.ratio * width, name="c_fc")(y)
        y = fnn.Dense(width, name="mlp_proj")(jax.nn.gelu(y))
        return x + fnn.Dropout(self.dropout)(y, deterministic=deterministic)


class FlaxGPT(fnn.Module):
    """Tokens [N, T] to logits [N, T, vocabulary]."""

    vocabulary: int
    length: int
    width: int
    heads: int
    depth: int
    ratio: int
    eps: float
    dropout: float
    tied: bool

    @fnn.compact
    def __call__(self, tokens: jax.Array, deterministic: bool = True) -> jax.Array:
        """The logits of every next token."""
        embedding = fnn.Embed(self.vocabulary, self.width, name="wte")
        places = fnn.Embed(self.length, self.width, name="wpe")
        x = embedding(tokens) + places(jnp.arange(tokens.shape[1])[None])
        for layer in range(self.depth):
            x = FlaxBlock(
                self.width, self.heads, self.ratio, self.eps, self.dropout, name=f"h_{layer}"
            )(x, deterministic)
        x = fnn.LayerNorm(epsilon=self.eps, name="ln_f")(x)
        if self.tied:
            return embedding.attend(x)
        return fnn.Dense(self.vocabulary, use_bias=False, name="lm_head")(x)


class TorchBlock(nn.Module):
    """As `FlaxBlock`."""

    def __init__(self, width: int, heads: int, ratio: int, eps: float, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1 = nn.LayerNorm(width, eps=eps)
        self.c_attn = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)
        self.ln_2 = nn.LayerNorm(width, eps=eps)
        self.c_fc = nn.Linear(width, ratio * width)
        self.mlp_proj = nn.Linear(ratio * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, T, width] to the same."""
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.c_attn(self.ln_1(x)).chunk(3, dim=-1)
        )
        y = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.dropout(self.c_proj(y.transpose(1, 2).flatten(2)))
        y = F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh")
        return x + self.dropout(self.mlp_proj(y))


class TorchGPT(nn.Module):
    """Tokens [N, T] to logits [N, T, vocabulary]."""

    def __init__(
        self,
        *,
        vocabulary: int,
        length: int,
        width: int,
        heads: int,
        depth: int,
        ratio: int,
        eps: float,
        dropout: float,
        tied: bool,
    ) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocabulary, width)
        self.wpe = nn.Embedding(length, width)
        self.h = nn.ModuleList(TorchBlock(width, heads, ratio, eps, dropout) for _ in range(depth))
        self.ln_f = nn.LayerNorm(width, eps=eps)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        if tied:
            self.lm_head.weight = self.wte.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """The logits of every next token."""
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


CONFIGURATION = {
    "vocabulary": 11,
    "length": 6,
    "batch": 2,
    "width": 8,
    "heads": 2,
    "depth": 1,
    "ratio": 2,
    "eps": 1e-5,
    "dropout": 0.1,
    "tied": True,
}


def flax_model(*, batch: int, **knobs: Any) -> FlaxGPT:
    """The network in linen."""
    return FlaxGPT(**knobs)


def torch_model(*, batch: int, **knobs: Any) -> TorchGPT:
    """The same in PyTorch."""
    return TorchGPT(**knobs)


def inputs(seed: int, *, vocabulary: int, length: int, batch: int, **_: Any) -> np.ndarray:
    """Tokens [N, T]."""
    return np.random.default_rng(seed).integers(0, vocabulary, size=(batch, length))


def random_configuration(rng: np.random.Generator) -> dict[str, Any]:
    """Other knobs, as small."""
    heads = int(rng.choice([1, 2]))
    return {
        "vocabulary": int(rng.integers(7, 13)),
        "length": int(rng.integers(2, 7)),
        "batch": int(rng.integers(1, 4)),
        "width": heads * int(rng.integers(2, 5)),
        "heads": heads,
        "depth": int(rng.integers(1, 3)),
        "ratio": int(rng.integers(1, 5)),
        "eps": float(rng.choice([1e-6, 1e-5, 1e-3])),
        "dropout": float(rng.choice([0.0, 0.1])),
        "tied": bool(rng.integers(2)),
    }
