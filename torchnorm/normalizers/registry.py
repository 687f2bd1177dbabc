"""Which modules are normalizers, for those that look into a model."""

from torchnorm.normalizers.batch_norm import BatchNorm
from torchnorm.normalizers.group_norm import GroupNorm
from torchnorm.normalizers.instance_norm import InstanceNorm
from torchnorm.normalizers.layer_norm import LayerNorm
from torchnorm.normalizers.normalizer import Normalizer
from torchnorm.normalizers.rms_norm import RMSNorm

#: Ours: a call of one is one operation, whatever it is made of.
NORMALIZERS = (BatchNorm, GroupNorm, InstanceNorm, LayerNorm, Normalizer, RMSNorm)
