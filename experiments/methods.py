"""The methods that are compared, and the one network that all of them train."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

import jaxnorm

BATCHNORM_DECAY = 0.9
"""Share of the old running statistics that BatchNorm keeps at each step. Flax's default of 0.99
averages over some hundred steps, too many for runs of a few hundred: the statistics used on the
test samples would lag behind the weights. It has no part in training."""


def _host_dense(features: int, gate: str | None, name: str) -> nn.Module:
    del gate  # only the layers that differentiate the activation need to know it
    return nn.Dense(features, name=name)


def _rule_dense(rule: jaxnorm.Rule) -> Callable[..., nn.Module]:
    def dense(features: int, gate: str | None, name: str) -> nn.Module:
        return jaxnorm.linen.Dense(features, gate=gate, rule=rule, name=name)

    return dense


def _batch_norm(train: bool, name: str) -> nn.Module:
    return nn.BatchNorm(use_running_average=not train, momentum=BATCHNORM_DECAY, name=name)


def _layer_norm(train: bool, name: str) -> nn.Module:
    del train
    return nn.LayerNorm(name=name)


@dataclass(frozen=True)
class Method:
    """One way to normalise.

    Attributes:
        title: as in tables and plots.
        dense: makes a dense layer from (features, gate, name).
        normalizer: makes the layer between a hidden dense layer and its ReLU from (train, name);
            None for methods without one.
    """

    title: str
    dense: Callable[..., nn.Module] = _host_dense
    normalizer: Callable[..., nn.Module] | None = None


METHODS: dict[str, Method] = {
    "plain": Method("plain"),
    "batchnorm": Method("BatchNorm", normalizer=_batch_norm),
    "layernorm": Method("LayerNorm", normalizer=_layer_norm),
    "bnp": Method("BNP", dense=_rule_dense(jaxnorm.BNP)),
    "neuronwise": Method("neuron-wise", dense=_rule_dense(jaxnorm.NEURONWISE)),
}
"""Every method by its name on the command line."""


class MLP(nn.Module):
    """A ReLU network whose dense layers and normalisers come from a method.

    The layers have the same names whatever the method, so that linen draws the same initial
    weights for all of them from one key.

    Attributes:
        method: the way to normalise.
        width: neurons in a hidden layer.
        depth: number of hidden layers.
        outputs: width of the last layer, which nothing follows.
    """

    method: Method
    width: int
    depth: int
    outputs: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Map inputs [N, I] to outputs [N, O]; `train` is for BatchNorm."""
        for index in range(self.depth):
            x = self.method.dense(self.width, "relu", f"hidden_{index}")(x)
            if self.method.normalizer is not None:
                x = self.method.normalizer(train, f"norm_{index}")(x)
            x = nn.relu(x)
        return self.method.dense(self.outputs, None, "output")(x)


def build(name: str, *, width: int, depth: int, outputs: int) -> MLP:
    """The network of a method, by its name on the command line."""
    return MLP(METHODS[name], width=width, depth=depth, outputs=outputs)


def initialize(model: MLP, seed: Any, inputs: ArrayLike) -> Any:
    """Initial variables: parameters and, for BatchNorm, running statistics.

    Args:
        model: the network.
        seed: of the run; may be traced.
        inputs: [N, I], for their width only.
    """
    return model.init(jax.random.key(seed), jnp.asarray(inputs)[:2], train=False)
