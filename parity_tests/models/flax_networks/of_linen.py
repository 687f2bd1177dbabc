"""Networks of linen modules that know nothing of jaxnorm."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp


class ResNetBlock(nn.Module):
    """Two convolutions, each with BatchNorm, and a skip connection."""

    features: int
    strides: int = 1

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        """Return what has the strides and the features."""
        y = nn.Conv(self.features, (3, 3), self.strides, use_bias=False)(x)
        y = nn.relu(nn.BatchNorm(use_running_average=not train)(y))
        y = nn.Conv(self.features, (3, 3), use_bias=False)(y)
        y = nn.BatchNorm(use_running_average=not train)(y)
        if x.shape != y.shape:
            x = nn.Conv(self.features, (1, 1), self.strides, use_bias=False, name="projection")(x)
            x = nn.BatchNorm(use_running_average=not train, name="projection_norm")(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """Convolution, BatchNorm, ReLU, residual blocks, pooling."""

    @nn.compact
    def __call__(self, x: Any, train: bool = True) -> Any:
        """Images [N, H, W, C] to logits."""
        x = nn.Conv(6, (3, 3), name="stem")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = ResNetBlock(6)(x, train)
        x = ResNetBlock(8, 2)(x, train)
        return nn.Dense(3)(jnp.mean(x, (1, 2)))


class EncoderBlock(nn.Module):
    """A pre-norm transformer block."""

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        """Tokens [N, T, D] to tokens."""
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(2, deterministic=not train)(y)
        y = nn.Dense(16)(nn.LayerNorm()(x))
        y = nn.Dropout(0.1, deterministic=not train)(nn.gelu(y))
        return x + nn.Dense(8)(y)


class ViT(nn.Module):
    """Patches, a class token, positions, transformer blocks."""

    @nn.compact
    def __call__(self, x: Any, train: bool = True) -> Any:
        """Images [N, H, W, C] to logits."""
        x = nn.Conv(8, (4, 4), (4, 4), padding="VALID", name="patches")(x)
        x = x.reshape(len(x), -1, 8)
        token = self.param("token", nn.initializers.normal(), (1, 1, 8))
        x = jnp.concatenate([jnp.tile(token, (len(x), 1, 1)), x], axis=1)
        x = x + self.param("positions", nn.initializers.normal(), (1, *x.shape[1:]))
        x = EncoderBlock(name="block")(x, train)
        return nn.Dense(3, name="head")(nn.LayerNorm()(x)[:, 0])


class Mixer(nn.Module):
    """MLP-Mixer: one MLP over the tokens, one over the channels."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Images [N, H, W, C] to logits."""
        x = nn.Conv(8, (2, 2), (2, 2))(x)
        x = x.reshape(len(x), -1, 8)
        y = jnp.swapaxes(nn.LayerNorm()(x), 1, 2)
        y = nn.Dense(12, name="tokens_in")(y)
        y = nn.Dense(x.shape[1], name="tokens_out")(nn.gelu(y, approximate=False))
        x = x + jnp.swapaxes(y, 1, 2)
        y = nn.Dense(12, name="channels_in")(nn.LayerNorm()(x))
        x = x + nn.Dense(8, name="channels_out")(nn.gelu(y, approximate=False))
        return nn.Dense(3)(jnp.mean(nn.LayerNorm()(x), axis=1))


class GPT(nn.Module):
    """A causal language model with SwiGLU, its output tied to the embedding."""

    @nn.compact
    def __call__(self, tokens: Any) -> Any:
        """Tokens [N, T] to logits."""
        embed = nn.Embed(11, 8)
        x = embed(tokens)
        mask = nn.make_causal_mask(tokens)
        y = nn.RMSNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(2, use_bias=False)(y, mask=mask)
        y = nn.RMSNorm()(x)
        y = nn.silu(nn.Dense(12, name="gate")(y)) * nn.Dense(12, name="up")(y)
        x = x + nn.Dense(8, name="down")(y)
        return embed.attend(nn.RMSNorm()(x))


class Policy(nn.Module):
    """A recurrent policy: encoder, LSTM, a simple cell, head."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Observations [N, T, I] to action logits."""
        x = nn.tanh(nn.Dense(8, name="encoder")(x))
        x = nn.RNN(nn.OptimizedLSTMCell(8, param_dtype=x.dtype))(x)
        x = nn.RNN(nn.SimpleCell(8, param_dtype=x.dtype))(x)
        return nn.Dense(4, name="head")(x)
