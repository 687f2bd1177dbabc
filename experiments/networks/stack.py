"""The network whose training step is timed."""

from collections.abc import Callable

import flax.linen as nn
import jax

import jaxnorm
from experiments.networks.layers import linear


class Stack(nn.Module):
    """Linear layers of one width, each with its ReLU.

    Attributes:
        width: neurons or channels.
        depth: number of layers.
        window: of the convolutions; (): dense layers.
        rule: of the layers; None for Flax's.
        normalizer: see `MLP`.
    """

    width: int
    depth: int
    window: tuple[int, ...] = ()
    rule: jaxnorm.Rule | None = None
    normalizer: Callable[..., nn.Module] | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [N, ..., width] to the same shape."""
        for _ in range(self.depth):
            x = linear(self.rule, self.width, gate="relu", window=self.window)(x)
            if self.normalizer is not None:
                x = self.normalizer(train=True)(x)
            x = nn.relu(x)
        return x
