"""The timed networks in Flax."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from experiments.bench.networks import BLOCKS, HEADS, HIDDEN, OUTPUTS, Network


class Timed(nn.Module):
    """What the networks have in common.

    Attributes:
        width: see `Network`.
        normalizer: "batchnorm", "layernorm" or None for the network's own.
        dtype: in which it computes; parameters are float32.
    """

    width: int
    normalizer: str | None = None
    dtype: Any = jnp.float32

    def dense(self, features: int) -> nn.Module:
        """A linear layer."""
        return nn.Dense(features, dtype=self.dtype)

    def normalized(self, x: jax.Array, otherwise: str | None = None) -> jax.Array:
        """Through the normalizer; `otherwise` is the one that the plain network has here."""
        kind = self.normalizer or otherwise
        if kind == "batchnorm":
            return nn.BatchNorm(use_running_average=False, momentum=0.9, dtype=self.dtype)(x)
        return nn.LayerNorm(dtype=self.dtype)(x) if kind == "layernorm" else x


class MLP(Timed):
    """Dense layers and ReLU."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [N, I] to [N, O]."""
        for _ in range(HIDDEN):
            x = nn.relu(self.normalized(self.dense(self.width)(x)))
        return self.dense(OUTPUTS)(x)


class Transformer(Timed):
    """Blocks of attention and an MLP with GELU, LayerNorm in front of each."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [N, T, C] to [N, T, C]."""
        for _ in range(BLOCKS["transformer"]):
            z = self.normalized(x, "layernorm")
            split = (*z.shape[:2], HEADS, -1)
            queries, keys, values = (self.dense(self.width)(z).reshape(split) for _ in range(3))
            read = jax.nn.dot_product_attention(queries, keys, values)
            x = x + self.dense(self.width)(read.reshape(z.shape))
            hidden = nn.gelu(self.dense(4 * self.width)(self.normalized(x, "layernorm")))
            x = x + self.dense(self.width)(hidden)
        return self.dense(self.width)(self.normalized(x, "layernorm"))


class ResNet(Timed):
    """Residual blocks of two convolutions, and a dense layer behind the mean over the image."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [N, H, W, C] to [N, O]."""
        for _ in range(BLOCKS["resnet"]):
            z = nn.relu(self.normalized(self._convolution()(x)))
            x = nn.relu(x + self.normalized(self._convolution()(z)))
        return self.dense(OUTPUTS)(x.mean((1, 2)))

    def _convolution(self) -> nn.Module:
        return nn.Conv(self.width, (3, 3), dtype=self.dtype)


KINDS: dict[str, type[Timed]] = {"mlp": MLP, "transformer": Transformer, "resnet": ResNet}


def build(network: Network, normalizer: str | None, dtype: str) -> Timed:
    """The module."""
    return KINDS[network.kind](network.width, normalizer, jnp.dtype(dtype))
