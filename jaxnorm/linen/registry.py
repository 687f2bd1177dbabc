"""Which of our classes says how to run which of Flax's layers, in a model that is converted."""

from flax import linen as nn

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
