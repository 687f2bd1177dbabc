"""Networks in the manner of public research code in linen, written small.

They stand for purejaxrl, Dopamine, big_vision, the lm1b example of Flax, and for diffusion models
and flows.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp


class ActorCritic(nn.Module):
    """As purejaxrl: orthogonal weights, those of the policy's head near zero."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Observations [N, I] to logits and a value, beside each other."""

        def dense(features: int, scale: float, name: str) -> nn.Dense:
            return nn.Dense(features, kernel_init=nn.initializers.orthogonal(scale), name=name)

        actor = nn.tanh(dense(16, 2**0.5, "actor_1")(x))
        actor = nn.tanh(dense(16, 2**0.5, "actor_2")(actor))
        critic = nn.tanh(dense(16, 2**0.5, "critic_1")(x))
        critic = nn.tanh(dense(16, 2**0.5, "critic_2")(critic))
        heads = dense(2, 0.01, "policy")(actor), dense(1, 1.0, "value")(critic)
        return jnp.concatenate(heads, axis=-1)


class DeepQ(nn.Module):
    """As Dopamine: convolutions on frames, one hidden layer."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Frames [N, H, W, C] to the values of the actions."""
        x = nn.relu(nn.Conv(6, (4, 4), strides=(2, 2))(x))
        x = nn.relu(nn.Conv(8, (3, 3), strides=(1, 1))(x))
        x = nn.relu(nn.Dense(16)(x.reshape(len(x), -1)))
        return nn.Dense(3)(x)


class StdConv(nn.Conv):
    """As big_vision: the kernel is standardized when it is read."""

    def param(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Return the parameter; of the kernel, what its spread is divided out of."""
        value = super().param(name, *args, **kwargs)
        if name == "kernel":
            value = value - jnp.mean(value, axis=(0, 1, 2))
            value = value / (jnp.std(value, axis=(0, 1, 2)) + 1e-5)
        return value


class BitBlock(nn.Module):
    """A residual block that is normalized and activated first."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Images to images."""
        y = nn.relu(nn.GroupNorm(2, name="norm_1")(x))
        y = StdConv(4, (1, 1), use_bias=False, name="conv_1")(y)
        y = nn.relu(nn.GroupNorm(2, name="norm_2")(y))
        return x + StdConv(8, (3, 3), use_bias=False, name="conv_2")(y)


class Bit(nn.Module):
    """As big_vision: standardized convolutions, GroupNorm, a head that begins at zero."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Images [N, H, W, C] to logits."""
        x = StdConv(8, (3, 3), use_bias=False, name="root")(x)
        x = BitBlock(name="block_1")(x)
        x = BitBlock(name="block_2")(x)
        x = nn.relu(nn.GroupNorm(2, name="norm")(x))
        return nn.Dense(3, kernel_init=nn.initializers.zeros, name="head")(jnp.mean(x, (1, 2)))


class Lm1b(nn.Module):
    """As the language model among the examples of Flax: pre-norm blocks, ReLU, fixed positions."""

    @nn.compact
    def __call__(self, tokens: Any) -> Any:
        """Tokens [N, T] to logits."""
        x = nn.Embed(33, 16, name="embed")(tokens)
        place, wave = jnp.arange(tokens.shape[1])[:, None], 2.0 ** -jnp.arange(8)
        x = x + jnp.concatenate([jnp.sin(place * wave), jnp.cos(place * wave)], axis=1)
        mask = nn.make_causal_mask(tokens)
        for block in range(2):
            y = nn.LayerNorm(name=f"norm_{block}_1")(x)
            attention = nn.SelfAttention(2, use_bias=False, name=f"attention_{block}")
            x = x + attention(y, mask=mask)
            y = nn.LayerNorm(name=f"norm_{block}_2")(x)
            y = nn.relu(nn.Dense(24, name=f"mlp_{block}_1")(y))
            x = x + nn.Dense(16, name=f"mlp_{block}_2")(y)
        return nn.Dense(33, name="logits")(nn.LayerNorm(name="norm")(x))


class Denoiser(nn.Module):
    """A small U-Net, told the time: every block adds a projection of its embedding."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Noisy images [N, H, W, C] to clean ones; the time is their spread."""
        time = jnp.std(x, axis=(1, 2, 3))[:, None] * jnp.arange(1.0, 9.0)
        time = nn.Dense(8, name="time_2")(nn.silu(nn.Dense(8, name="time_1")(jnp.sin(time))))
        down = nn.Conv(8, (3, 3), name="conv_in")(x)
        down = down + nn.Dense(8, name="time_3")(nn.silu(time))[:, None, None]
        y = nn.silu(nn.GroupNorm(2, name="norm_1")(down))
        y = nn.silu(nn.GroupNorm(2, name="norm_2")(nn.Conv(8, (3, 3), 2, name="conv_down")(y)))
        y = nn.Conv(8, (3, 3), name="conv_middle")(y)
        y = jnp.repeat(jnp.repeat(y, 2, 1), 2, 2)
        y = nn.silu(nn.Conv(8, (3, 3), name="conv_up")(jnp.concatenate([y, down], axis=-1)))
        return nn.Conv(x.shape[-1], (1, 1), name="conv_out")(y)


class Flow(nn.Module):
    """RealNVP: its output is minus the logarithm of the density of each point."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Points [N, 2] to minus their log-densities."""
        total = jnp.log(2 * jnp.pi)
        for k in range(4):
            seen, moved = x[:, :1], x[:, 1:]
            y = nn.Dense(2, name=f"out_{k}")(nn.relu(nn.Dense(32, name=f"in_{k}")(seen)))
            scale = jnp.tanh(y[:, :1])
            x = jnp.concatenate([moved * jnp.exp(scale) + y[:, 1:], seen], axis=1)
            total = total - scale[:, 0]
        return total + 0.5 * jnp.sum(x**2, axis=1)
