"""Actor and critic: two networks of their own, and what is drawn from the actor's outputs."""

import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp


class Categorical(NamedTuple):
    """A choice of one of some actions, by logits [..., A]."""

    logits: jax.Array

    def sample(self, key: jax.Array) -> jax.Array:
        """An action [...]."""
        return jax.random.categorical(key, self.logits)

    def log_prob(self, action: jax.Array) -> jax.Array:
        """Of actions [...]."""
        every = jax.nn.log_softmax(self.logits)
        return jnp.take_along_axis(every, action[..., None], axis=-1)[..., 0]

    def entropy(self) -> jax.Array:
        """In nats, [...]."""
        every = jax.nn.log_softmax(self.logits)
        return -(jnp.exp(every) * every).sum(axis=-1)


class Gaussian(NamedTuple):
    """Independent normal numbers: mean [..., A], logarithm of the deviations [A]."""

    mean: jax.Array
    log_std: jax.Array

    def sample(self, key: jax.Array) -> jax.Array:
        """An action [..., A]."""
        return self.mean + jnp.exp(self.log_std) * jax.random.normal(key, self.mean.shape)

    def log_prob(self, action: jax.Array) -> jax.Array:
        """The logarithm of the density of actions [..., A]."""
        scaled = (action - self.mean) / jnp.exp(self.log_std)
        return (-0.5 * scaled**2 - self.log_std - 0.5 * math.log(2 * math.pi)).sum(axis=-1)

    def entropy(self) -> jax.Array:
        """In nats, [...]."""
        each = self.log_std + 0.5 * math.log(2 * math.pi * math.e)
        return jnp.broadcast_to(each, self.mean.shape).sum(axis=-1)


class ActorCritic(nn.Module):
    """Two tanh networks of Flax's own dense layers, which `jaxnorm` converts.

    Initial weights are orthogonal, those of the actor's outputs small, as is usual. Layers have the
    same names with every normalizer, so that linen draws the same initial weights for all of them.

    Attributes:
        widths: of the hidden layers of either.
        actions: outputs of the actor.
        continuous: whether they are means of numbers, with deviations that are learned.
        normalizer: makes the layer between a hidden layer and its activation from (train, name).
    """

    widths: tuple[int, ...]
    actions: int
    continuous: bool
    normalizer: Callable[..., nn.Module] | None = None

    @nn.compact
    def __call__(
        self, observation: jax.Array, train: bool
    ) -> tuple[Categorical | Gaussian, jax.Array]:
        """Map observations [N, I] to (policies [N], values [N])."""
        outputs = self._network("actor", self.actions, 0.01, observation, train)
        value = self._network("critic", 1, 1.0, observation, train)[..., 0]
        if not self.continuous:
            return Categorical(outputs), value
        log_std = self.param("log_std", nn.initializers.zeros, (self.actions,))
        return Gaussian(outputs, log_std), value

    def _network(self, name: str, outputs: int, scale: float, x: jax.Array, train: bool):
        def dense(width: int, scale: float, layer: str) -> nn.Dense:
            return nn.Dense(
                width, kernel_init=nn.initializers.orthogonal(scale), name=f"{name}_{layer}"
            )

        for index, width in enumerate(self.widths):
            x = dense(width, math.sqrt(2), f"hidden_{index}")(x)
            if self.normalizer is not None:
                x = self.normalizer(train, f"{name}_norm_{index}")(x)
            x = nn.tanh(x)
        return dense(outputs, scale, "output")(x)
