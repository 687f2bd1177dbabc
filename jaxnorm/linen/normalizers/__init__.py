"""Other normalizers as layers of Flax linen, one file per method."""

from jaxnorm.linen.normalizers.attentive_norm import AttentiveNorm as AttentiveNorm
from jaxnorm.linen.normalizers.batch_norm import BatchNorm as BatchNorm
from jaxnorm.linen.normalizers.batch_renorm import BatchRenorm as BatchRenorm
from jaxnorm.linen.normalizers.group_norm import GroupNorm as GroupNorm
from jaxnorm.linen.normalizers.iebn import (
    InstanceEnhancementBatchNorm as InstanceEnhancementBatchNorm,
)
from jaxnorm.linen.normalizers.instance_norm import InstanceNorm as InstanceNorm
from jaxnorm.linen.normalizers.layer_norm import LayerNorm as LayerNorm
from jaxnorm.linen.normalizers.mixture_norm import MixtureNorm as MixtureNorm
from jaxnorm.linen.normalizers.mode_norm import ModeNorm as ModeNorm
from jaxnorm.linen.normalizers.multiplicative_noise import DropConnect as DropConnect
from jaxnorm.linen.normalizers.multiplicative_noise import (
    MultiplicativeNoise as MultiplicativeNoise,
)
from jaxnorm.linen.normalizers.online_norm import OnlineNorm as OnlineNorm
from jaxnorm.linen.normalizers.replace import replace as replace
from jaxnorm.linen.normalizers.rms_norm import RMSNorm as RMSNorm
from jaxnorm.linen.normalizers.standardize import Standardize as Standardize
from jaxnorm.linen.normalizers.stochastic_norm import StochasticNorm as StochasticNorm
from jaxnorm.linen.normalizers.switchable_norm import SwitchableNorm as SwitchableNorm
from jaxnorm.linen.normalizers.weight_norm import WeightNorm as WeightNorm
