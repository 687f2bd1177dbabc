"""Which of our classes takes the place of which of Flax's, in a model that is converted."""

from flax import nnx

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
NORMALIZERS = (nnx.BatchNorm, nnx.LayerNorm, nnx.GroupNorm, nnx.RMSNorm, nnx.InstanceNorm)
