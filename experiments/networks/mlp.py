"""The network of the comparison, also with convolutions, whose cost is measured."""

from collections.abc import Callable

import flax.linen as nn
import jax

import jaxnorm
from experiments.networks.layers import linear


class MLP(nn.Module):
    """A ReLU network of linear layers that all have one width.

    The layers have the same names under every rule and normalizer, so that linen draws the same
    initial weights for all of them from one key.

    Attributes:
        width: neurons in a hidden layer.
        depth: number of hidden layers.
        outputs: width of the last layer, which nothing follows; None: there is none.
        rule: of the linear layers; None for Flax's.
        normalizer: makes the layer between a hidden layer and its ReLU from (train, name).
        window: of convolutions in the place of the hidden dense layers.
    """

    width: int
    depth: int
    outputs: int | None = None
    rule: jaxnorm.Rule | None = None
    normalizer: Callable[..., nn.Module] | None = None
    window: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Map inputs [N, ..., I] to outputs [N, ..., O]; `train` is for BatchNorm."""
        for index in range(self.depth):
            layer = {"window": self.window, "name": f"hidden_{index}"}
            x = linear(self.rule, self.width, gate="relu", **layer)(x)
            if self.normalizer is not None:
                x = self.normalizer(train, f"norm_{index}")(x)
            x = nn.relu(x)
        if self.outputs is None:
            return x
        return linear(self.rule, self.outputs, gate=None, name="output")(x)
