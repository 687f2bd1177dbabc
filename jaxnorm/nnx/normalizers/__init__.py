"""Other normalizers as layers of Flax nnx, one file per method; the texts are those of linen."""

from jaxnorm.nnx.normalizers.attentive_norm import AttentiveNorm as AttentiveNorm
from jaxnorm.nnx.normalizers.batch_norm import BatchNorm as BatchNorm
from jaxnorm.nnx.normalizers.batch_renorm import BatchRenorm as BatchRenorm
from jaxnorm.nnx.normalizers.group_norm import GroupNorm as GroupNorm
from jaxnorm.nnx.normalizers.iebn import (
    InstanceEnhancementBatchNorm as InstanceEnhancementBatchNorm,
)
from jaxnorm.nnx.normalizers.instance_norm import InstanceNorm as InstanceNorm
from jaxnorm.nnx.normalizers.layer_norm import LayerNorm as LayerNorm
from jaxnorm.nnx.normalizers.mixture_norm import MixtureNorm as MixtureNorm
from jaxnorm.nnx.normalizers.mode_norm import ModeNorm as ModeNorm
from jaxnorm.nnx.normalizers.multiplicative_noise import DropConnect as DropConnect
from jaxnorm.nnx.normalizers.multiplicative_noise import (
    MultiplicativeNoise as MultiplicativeNoise,
)
from jaxnorm.nnx.normalizers.online_norm import BackwardStat as BackwardStat
from jaxnorm.nnx.normalizers.online_norm import OnlineNorm as OnlineNorm
from jaxnorm.nnx.normalizers.online_norm import add_backward_stats as add_backward_stats
from jaxnorm.nnx.normalizers.replace import replace as replace
from jaxnorm.nnx.normalizers.rms_norm import RMSNorm as RMSNorm
from jaxnorm.nnx.normalizers.standardize import Standardize as Standardize
from jaxnorm.nnx.normalizers.stochastic_norm import StochasticNorm as StochasticNorm
from jaxnorm.nnx.normalizers.switchable_norm import SwitchableNorm as SwitchableNorm
from jaxnorm.nnx.normalizers.weight_norm import WeightNorm as WeightNorm
