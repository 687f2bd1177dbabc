"""Networks of nnx modules that know nothing of jaxnorm."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


class NnxBlock(nnx.Module):
    """As `ResNetBlock`."""

    def __init__(self, inputs: int, features: int, strides: int, rngs: nnx.Rngs) -> None:
        self.conv1 = nnx.Conv(inputs, features, (3, 3), strides, use_bias=False, rngs=rngs)
        self.norm1 = nnx.BatchNorm(features, rngs=rngs)
        self.conv2 = nnx.Conv(features, features, (3, 3), use_bias=False, rngs=rngs)
        self.norm2 = nnx.BatchNorm(features, rngs=rngs)
        self.skip = nnx.Conv(inputs, features, (1, 1), strides, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        """Return what has the strides and the features."""
        y = nnx.relu(self.norm1(self.conv1(x)))
        return nnx.relu(self.norm2(self.conv2(y)) + self.skip(x))


class NnxResNet(nnx.Module):
    """As `ResNet`."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.stem, self.norm = nnx.Conv(3, 6, (3, 3), rngs=rngs), nnx.BatchNorm(6, rngs=rngs)
        self.blocks = nnx.List([NnxBlock(6, 6, 1, rngs), NnxBlock(6, 8, 2, rngs)])
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        """Images [N, H, W, C] to logits."""
        x = nnx.relu(self.norm(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return self.head(jnp.mean(x, (1, 2)))


class NnxEncoderBlock(nnx.Module):
    """A pre-norm transformer block with SwiGLU."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.norm1, self.norm2 = nnx.LayerNorm(8, rngs=rngs), nnx.LayerNorm(8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.gate, self.up = nnx.Linear(8, 12, rngs=rngs), nnx.Linear(8, 12, rngs=rngs)
        self.down, self.dropout = nnx.Linear(12, 8, rngs=rngs), nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        """Tokens [N, T, D] to tokens."""
        x = x + self.attention(self.norm1(x))
        y = self.norm2(x)
        return x + self.down(self.dropout(nnx.silu(self.gate(y)) * self.up(y)))


class NnxViT(nnx.Module):
    """Patches, positions, transformer blocks."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.patches = nnx.Conv(3, 8, (4, 4), (4, 4), padding="VALID", rngs=rngs)
        self.positions = nnx.Param(0.02 * jax.random.normal(rngs.params(), (1, 4, 8)))
        self.blocks = nnx.List([NnxEncoderBlock(rngs)])
        self.hidden, self.head = nnx.Linear(8, 6, rngs=rngs), nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        """Images [N, H, W, C] to logits."""
        x = self.patches(x)
        x = x.reshape(len(x), -1, 8) + self.positions[...]
        for block in self.blocks:
            x = block(x)
        return self.head(nnx.tanh(self.hidden(jnp.mean(x, axis=1))))


class NnxAutoencoder(nnx.Module):
    """A variational autoencoder, as in the examples of Flax."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.encoder = nnx.Linear(192, 16, rngs=rngs)
        self.mean, self.log_variance = nnx.Linear(16, 4, rngs=rngs), nnx.Linear(16, 4, rngs=rngs)
        self.hidden, self.decoder = nnx.Linear(4, 16, rngs=rngs), nnx.Linear(16, 192, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        """Images [N, H, W, C] to their likeness."""
        y = nnx.relu(self.encoder(x.reshape(len(x), -1)))
        mean, log_variance = self.mean(y), self.log_variance(y)
        noise = jax.random.normal(jax.random.key(0), mean.shape, mean.dtype)
        z = mean + jnp.exp(0.5 * log_variance) * noise
        return self.decoder(nnx.relu(self.hidden(z))).reshape(x.shape)


class NnxDueling(nnx.Module):
    """A deep Q-network with a value and an advantage."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv1 = nnx.Conv(3, 6, (3, 3), 2, rngs=rngs)
        self.conv2 = nnx.Conv(6, 8, (2, 2), padding="VALID", rngs=rngs)
        self.value = nnx.Sequential(
            nnx.Linear(72, 16, rngs=rngs), nnx.relu, nnx.Linear(16, 1, rngs=rngs)
        )
        self.advantage = nnx.Sequential(
            nnx.Linear(72, 16, rngs=rngs), nnx.relu, nnx.Linear(16, 3, rngs=rngs)
        )

    def __call__(self, x: Any) -> Any:
        """Frames [N, H, W, C] to the values of the actions."""
        x = nnx.relu(self.conv2(nnx.relu(self.conv1(x))))
        x = x.reshape(len(x), -1)
        advantage = self.advantage(x)
        return self.value(x) + advantage - advantage.mean(-1, keepdims=True)
