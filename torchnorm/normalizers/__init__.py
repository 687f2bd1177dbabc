"""Other normalizers as functions and modules, one file per method; channels in dimension 1."""

from torchnorm.normalizers.batch_norm import BatchNorm as BatchNorm
from torchnorm.normalizers.group_norm import GroupNorm as GroupNorm
from torchnorm.normalizers.instance_norm import InstanceNorm as InstanceNorm
from torchnorm.normalizers.layer_norm import LayerNorm as LayerNorm
from torchnorm.normalizers.replace import replace as replace
from torchnorm.normalizers.rms_norm import RMSNorm as RMSNorm
from torchnorm.normalizers.weight_norm import weight_norm as weight_norm
