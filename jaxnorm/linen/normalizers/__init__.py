"""Other normalizers as layers of Flax linen, one file per method."""

from jaxnorm.linen.normalizers.batch_norm import BatchNorm as BatchNorm
from jaxnorm.linen.normalizers.group_norm import GroupNorm as GroupNorm
from jaxnorm.linen.normalizers.instance_norm import InstanceNorm as InstanceNorm
from jaxnorm.linen.normalizers.layer_norm import LayerNorm as LayerNorm
from jaxnorm.linen.normalizers.replace import replace as replace
from jaxnorm.linen.normalizers.rms_norm import RMSNorm as RMSNorm
from jaxnorm.linen.normalizers.weight_norm import WeightNorm as WeightNorm
