"""Which of our classes takes the place of which of Flax's, in a model that is converted."""

import functools

from flax import nnx

from jaxnorm.conversion.subclasses import base_of
from jaxnorm.nnx import normalizers
from jaxnorm.nnx.base import Neuronwise
from jaxnorm.nnx.conv import Conv, ConvTranspose
from jaxnorm.nnx.linear import Einsum, Linear, LinearGeneral

KINDS: dict[type[nnx.Module], type[nnx.Module]] = {
    nnx.Linear: Linear,
    nnx.LinearGeneral: LinearGeneral,
    nnx.Einsum: Einsum,
    nnx.Conv: Conv,
    nnx.ConvTranspose: ConvTranspose,
}
#: What `Deferred` may name.
NORMALIZERS = (
    nnx.BatchNorm,
    nnx.LayerNorm,
    nnx.GroupNorm,
    nnx.RMSNorm,
    nnx.InstanceNorm,
    normalizers.BatchNorm,
    normalizers.LayerNorm,
    normalizers.GroupNorm,
    normalizers.RMSNorm,
    normalizers.InstanceNorm,
    normalizers.AttentiveNorm,
    normalizers.BatchRenorm,
    normalizers.InstanceEnhancementBatchNorm,
    normalizers.MixtureNorm,
    normalizers.ModeNorm,
    normalizers.MultiplicativeNoise,
    normalizers.OnlineNorm,
    normalizers.StochasticNorm,
    normalizers.SwitchableNorm,
)


@functools.cache
def kind_of(kind: type) -> type | None:
    """The layer of Flax that a class is, or that it computes the same as; None for others."""
    return None if issubclass(kind, Neuronwise) else base_of(kind, KINDS)
