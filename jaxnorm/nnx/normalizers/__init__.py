"""Other normalizers as layers of Flax nnx, one file per method; the texts are those of linen."""

from jaxnorm.nnx.normalizers.attentive_norm import AttentiveNorm as AttentiveNorm
from jaxnorm.nnx.normalizers.batch_renorm import BatchRenorm as BatchRenorm
from jaxnorm.nnx.normalizers.iebn import (
    InstanceEnhancementBatchNorm as InstanceEnhancementBatchNorm,
)
from jaxnorm.nnx.normalizers.online_norm import BackwardStat as BackwardStat
from jaxnorm.nnx.normalizers.online_norm import OnlineNorm as OnlineNorm
from jaxnorm.nnx.normalizers.online_norm import add_backward_stats as add_backward_stats
from jaxnorm.nnx.normalizers.replace import replace as replace
from jaxnorm.nnx.normalizers.switchable_norm import SwitchableNorm as SwitchableNorm
