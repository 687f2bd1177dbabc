"""The network of the comparison."""

from collections.abc import Callable

import flax.linen as nn
import jax

import jaxnorm
from experiments.networks.layers import linear


class MLP(nn.Module):
    """A ReLU network of dense layers.

    The layers have the same names under every rule and normalizer, so that linen draws the same
    initial weights for all of them from one key.

    Attributes:
        width: neurons in a hidden layer.
        depth: number of hidden layers.
        outputs: width of the last layer, which nothing follows.
        rule: of the dense layers; None for Flax's.
        normalizer: makes the layer between a hidden layer and its ReLU from (train, name).
    """

    width: int
    depth: int
    outputs: int
    rule: jaxnorm.Rule | None = None
    normalizer: Callable[..., nn.Module] | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Map inputs [N, I] to outputs [N, O]; `train` is for BatchNorm."""
        for index in range(self.depth):
            x = linear(self.rule, self.width, gate="relu", name=f"hidden_{index}")(x)
            if self.normalizer is not None:
                x = self.normalizer(train, f"norm_{index}")(x)
            x = nn.relu(x)
        return linear(self.rule, self.outputs, gate=None, name="output")(x)
