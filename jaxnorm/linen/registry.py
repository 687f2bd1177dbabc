"""Which of our classes says how to run which of Flax's layers, in a model that is converted."""

import functools

from flax import linen as nn

from jaxnorm.conversion.subclasses import base_of
from jaxnorm.linen.base import Neuronwise
from jaxnorm.linen.conv import Conv, ConvTranspose
from jaxnorm.linen.dense import Dense, DenseGeneral, Einsum

KINDS: dict[type[nn.Module], type[Neuronwise]] = {
    nn.Dense: Dense,
    nn.DenseGeneral: DenseGeneral,
    nn.Einsum: Einsum,
    nn.Conv: Conv,
    nn.ConvTranspose: ConvTranspose,
}


@functools.cache
def kind_of(kind: type) -> type[Neuronwise] | None:
    """Ours for a layer of Flax, or for a subclass that computes what it does; None for others."""
    base = None if issubclass(kind, Neuronwise) else base_of(kind, KINDS)
    return None if base is None else KINDS[base]
