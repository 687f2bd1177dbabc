"""Transformers that differ in one thing."""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax

import jaxnorm
from experiments.networks.transformer import Transformer
from experiments.studies.tasks import Task

QUERIES = ("Dense_1", "Dense_7")
"""The layers of the two blocks that make them."""


@dataclass(frozen=True)
class Change:
    """What is different.

    Attributes:
        unit: of the inputs of all linear layers; their initial kernels are divided by it, so that
            the network computes the same.
        centered: whether what a LayerNorm gives has its mean over the batch taken out.
        query_bias: not 0: queries have a second bias, times this, so that their mean moves so much
            farther in a step.
    """

    unit: float = 1.0
    centered: bool = False
    query_bias: float = 0.0


def network(task: Task, rule: jaxnorm.Rule, outputs: int, change: Change | None) -> Any:
    """The network of a task; with a change, a transformer."""
    whole = task.network(rule, outputs)
    if change is None:
        return whole
    fields = {name: getattr(whole, name) for name in ("width", "blocks", "heads", "outputs")}
    normalizer = CenteredNorm if change.centered else whole.normalizer
    return Changed(
        **fields,
        rule=rule,
        normalizer=normalizer,
        unit=change.unit,
        query_bias=change.query_bias,
    )


class Changed(Transformer):
    """The network with inputs of its linear layers in another unit, and biases of queries.

    Attributes:
        unit: see `Change`.
        query_bias: likewise.
    """

    unit: float = 1.0
    query_bias: float = 0.0

    def _linear(self, features: int, gate: str | None = None) -> Any:
        layer = super()._linear(features, gate)
        if not self.query_bias or layer.name not in QUERIES:
            return lambda x: layer(self.unit * x)
        more = self.param(f"bias_{layer.name}", nn.initializers.zeros, (features,))
        return lambda x: layer(self.unit * x) + self.query_bias * more

    @nn.nowrap
    def init(self, *args: Any, **kwargs: Any) -> Any:
        """As that of every module, the kernels over the unit."""

        def scaled(path: Any, leaf: jax.Array) -> jax.Array:
            return leaf / self.unit if path[-1].key == "kernel" else leaf

        return jax.tree_util.tree_map_with_path(scaled, super().init(*args, **kwargs))


class CenteredNorm(nn.Module):
    """LayerNorm without parameters, then the mean of each channel over the batch out.

    Attributes:
        train: the same in both cases.
    """

    train: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Of inputs [N, T, C]."""
        x = nn.LayerNorm(use_bias=False, use_scale=False)(x)
        return x - x.mean(axis=(0, 1))
