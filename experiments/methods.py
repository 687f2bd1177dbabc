"""The methods that are compared, and the one network that all of them train."""

from collections.abc import Callable
from dataclasses import dataclass, replace
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
    """One way to normalize.

    Attributes:
        title: as in tables and plots.
        rule: of the dense layers; None for the host's.
        normalizer: makes the layer between a hidden dense layer and its ReLU from (train, name);
            None for methods without one.
    """

    title: str
    rule: jaxnorm.Rule | None = None
    normalizer: Callable[..., nn.Module] | None = None


METHODS: dict[str, Method] = {
    "plain": Method("plain"),
    "batchnorm": Method("BatchNorm", normalizer=_batch_norm),
    "layernorm": Method("LayerNorm", normalizer=_layer_norm),
    "bnp": Method("BNP", jaxnorm.BNP),
    "neuronwise": Method("neuron-wise", jaxnorm.NEURONWISE),
    "unwrapped": Method("not wrapped", replace(jaxnorm.NEURONWISE, gradient="preconditioned")),
}
"""Every method by its name on the command line."""


class MLP(nn.Module):
    """A ReLU network whose dense layers and normalizers come from a method.

    The layers have the same names whatever the method, so that linen draws the same initial
    weights for all of them from one key.

    Attributes:
        method: the way to normalize.
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
        rule = self.method.rule
        dense = _host_dense if rule is None else _rule_dense(rule)
        for index in range(self.depth):
            x = dense(self.width, "relu", f"hidden_{index}")(x)
            if self.method.normalizer is not None:
                x = self.method.normalizer(train, f"norm_{index}")(x)
            x = nn.relu(x)
        return dense(self.outputs, None, "output")(x)


def build(name: str, *, width: int, depth: int, outputs: int) -> MLP:
    """The network of a method, by its name on the command line."""
    return MLP(METHODS[name], width=width, depth=depth, outputs=outputs)


def records(method: Method) -> bool:
    """Whether the layers record statistics, for an optimizer in neuron coordinates."""
    return method.rule is not None and method.rule.gradient is None


def initialize(model: MLP, seed: Any, inputs: ArrayLike) -> Any:
    """Initial variables: parameters and, where they are needed, statistics.

    Args:
        model: the network.
        seed: of the run; may be traced.
        inputs: [N, I], for their width only.
    """
    inputs = jnp.asarray(inputs)[:2]
    variables = model.init(jax.random.key(seed), inputs, train=False)
    if records(model.method):
        stats = jaxnorm.linen.init_statistics(model, variables, inputs, train=False)
        variables = {**variables, "neuron_stats": stats}
    return variables
