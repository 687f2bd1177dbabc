"""Which of our classes says how to run which of Flax's layers, in a model that is converted."""

import functools

from flax import linen as nn

from jaxnorm.conversion.subclasses import base_of
from jaxnorm.linen.base import Neuronwise
from jaxnorm.linen.conv import Conv, ConvTranspose
from jaxnorm.linen.dense import Dense, DenseGeneral, Einsum
from jaxnorm.linen.normalizers.multiplicative_noise import MultiplicativeNoise
from jaxnorm.linen.normalizers.normalizer import Normalizer

KINDS: dict[type[nn.Module], type[Neuronwise]] = {
    nn.Dense: Dense,
    nn.DenseGeneral: DenseGeneral,
    nn.Einsum: Einsum,
    nn.Conv: Conv,
    nn.ConvTranspose: ConvTranspose,
}
#: What `Deferred` may name; those of `jaxnorm.linen.normalizers` that are made of one of Flax's are
#: subclasses of it.
NORMALIZERS = (
    nn.BatchNorm,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.InstanceNorm,
    Normalizer,
    MultiplicativeNoise,
)


@functools.cache
def kind_of(kind: type) -> type[Neuronwise] | None:
    """Ours for a layer of Flax, or for a subclass that computes what it does; None for others."""
    base = None if issubclass(kind, Neuronwise) else base_of(kind, KINDS)
    return None if base is None else KINDS[base]
