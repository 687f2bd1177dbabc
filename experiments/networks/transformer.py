"""A small language model: which character comes next."""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

import jaxnorm
from experiments.networks.layers import linear


class Transformer(nn.Module):
    """Blocks of causal attention and an MLP with GELU, all linear layers under one rule.

    Attributes:
        width: of the residual stream.
        blocks: how many.
        heads: of the attention.
        outputs: characters in the alphabet.
        rule: of all linear layers; None for Flax's.
        normalizer: makes the layer in front of each branch and of the output from (train).
        wrapper: see `linear`.
    """

    width: int
    blocks: int
    heads: int
    outputs: int
    rule: jaxnorm.Rule | None
    normalizer: Callable[..., nn.Module] | None = None
    wrapper: Callable[[nn.Module], nn.Module] | None = None

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool) -> jax.Array:
        """Map characters [N, T] to logits [N, T, K]; the same in training and afterwards."""
        length = tokens.shape[1]

        def normalized(x: jax.Array) -> jax.Array:
            return x if self.normalizer is None else self.normalizer(train)(x)

        positions = nn.initializers.normal(0.02)
        x = nn.Embed(self.outputs, self.width)(tokens)
        x = x + self.param("positions", positions, (length, self.width))
        for _ in range(self.blocks):
            x = x + self._linear(self.width)(self._attention(normalized(x)))
            hidden = self._linear(4 * self.width, gate="gelu")(normalized(x))
            x = x + self._linear(self.width)(nn.gelu(hidden))
        return self._linear(self.outputs)(normalized(x))

    def _linear(self, features: int, gate: str | None = None) -> Any:
        return linear(self.rule, features, gate=gate, wrapper=self.wrapper)

    def _attention(self, x: jax.Array) -> jax.Array:
        """What each character reads of itself and those before it, [N, T, C]."""
        count, length, width = x.shape
        queries, keys, values = (
            self._linear(width)(x).reshape(count, length, self.heads, -1) for _ in range(3)
        )
        scores = jnp.einsum("nqhc,nkhc->nhqk", queries, keys) / math.sqrt(queries.shape[-1])
        past = jnp.tril(jnp.ones((length, length), bool))
        weights = jax.nn.softmax(jnp.where(past, scores, -1e9))
        return jnp.einsum("nhqk,nkhc->nqhc", weights, values).reshape(x.shape)
