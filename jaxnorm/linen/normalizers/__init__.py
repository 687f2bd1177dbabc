"""Other normalizers as layers of Flax linen, one file per method."""

from jaxnorm.linen.normalizers.attentive_norm import AttentiveNorm as AttentiveNorm
from jaxnorm.linen.normalizers.batch_renorm import BatchRenorm as BatchRenorm
from jaxnorm.linen.normalizers.iebn import (
    InstanceEnhancementBatchNorm as InstanceEnhancementBatchNorm,
)
from jaxnorm.linen.normalizers.online_norm import OnlineNorm as OnlineNorm
from jaxnorm.linen.normalizers.replace import replace as replace
from jaxnorm.linen.normalizers.switchable_norm import SwitchableNorm as SwitchableNorm
