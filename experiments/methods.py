"""The methods that are compared, by their names on the command line."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import flax.linen as nn

import jaxnorm
from experiments.networks.layers import batch_norm, layer_norm
from experiments.networks.mlp import MLP


@dataclass(frozen=True)
class Method:
    """One way to normalize.

    Attributes:
        title: as in tables and plots.
        rule: of the dense layers; None for Flax's.
        normalizer: makes the layer between a hidden dense layer and its ReLU; None for methods
            without one.
    """

    title: str
    rule: jaxnorm.Rule | None = None
    normalizer: Callable[..., nn.Module] | None = None

    def network(self, *, width: int, depth: int, outputs: int) -> MLP:
        """The network that is trained."""
        return MLP(width, depth, outputs, self.rule, self.normalizer)


METHODS: dict[str, Method] = {
    "plain": Method("plain"),
    "batchnorm": Method("BatchNorm", normalizer=batch_norm),
    "layernorm": Method("LayerNorm", normalizer=layer_norm),
    "bnp": Method("BNP", jaxnorm.BNP),
    "neuronwise": Method("neuron-wise", jaxnorm.NEURONWISE),
    "unwrapped": Method("not wrapped", replace(jaxnorm.NEURONWISE, gradient="preconditioned")),
}
"""Every method by its name on the command line."""
