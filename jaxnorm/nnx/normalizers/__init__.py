"""Other normalizers as layers of Flax nnx, one file per method; the texts are those of linen."""

from jaxnorm.nnx.normalizers.batch_norm import BatchNorm as BatchNorm
from jaxnorm.nnx.normalizers.group_norm import GroupNorm as GroupNorm
from jaxnorm.nnx.normalizers.instance_norm import InstanceNorm as InstanceNorm
from jaxnorm.nnx.normalizers.layer_norm import LayerNorm as LayerNorm
from jaxnorm.nnx.normalizers.replace import replace as replace
from jaxnorm.nnx.normalizers.rms_norm import RMSNorm as RMSNorm
from jaxnorm.nnx.normalizers.weight_norm import WeightNorm as WeightNorm
