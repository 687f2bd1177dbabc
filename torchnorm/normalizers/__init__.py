"""Other normalizers as functions and modules, one file per method; channels in dimension 1."""

from torchnorm.normalizers import standardize as standardize
from torchnorm.normalizers.attentive_norm import AttentiveNorm as AttentiveNorm
from torchnorm.normalizers.attentive_norm import AttentiveParams as AttentiveParams
from torchnorm.normalizers.attentive_norm import AttentiveState as AttentiveState
from torchnorm.normalizers.attentive_norm import attentive_norm as attentive_norm
from torchnorm.normalizers.attentive_norm import initial_attentive_state as initial_attentive_state
from torchnorm.normalizers.batch_norm import BatchNorm as BatchNorm
from torchnorm.normalizers.batch_renorm import BatchRenorm as BatchRenorm
from torchnorm.normalizers.batch_renorm import RenormState as RenormState
from torchnorm.normalizers.batch_renorm import batch_renorm as batch_renorm
from torchnorm.normalizers.batch_renorm import initial_renorm_state as initial_renorm_state
from torchnorm.normalizers.batch_renorm import published_limits as published_limits
from torchnorm.normalizers.batch_stats import BatchStats as BatchStats
from torchnorm.normalizers.batch_stats import initial_batch_stats as initial_batch_stats
from torchnorm.normalizers.group_norm import GroupNorm as GroupNorm
from torchnorm.normalizers.iebn import InstanceEnhancementBatchNorm as InstanceEnhancementBatchNorm
from torchnorm.normalizers.iebn import (
    instance_enhancement_batch_norm as instance_enhancement_batch_norm,
)
from torchnorm.normalizers.instance_norm import InstanceNorm as InstanceNorm
from torchnorm.normalizers.layer_norm import LayerNorm as LayerNorm
from torchnorm.normalizers.mixture_norm import Mixture as Mixture
from torchnorm.normalizers.mixture_norm import MixtureNorm as MixtureNorm
from torchnorm.normalizers.mixture_norm import initial_mixture as initial_mixture
from torchnorm.normalizers.mixture_norm import mixture_norm as mixture_norm
from torchnorm.normalizers.mode_norm import ModeNorm as ModeNorm
from torchnorm.normalizers.mode_norm import Modes as Modes
from torchnorm.normalizers.mode_norm import initial_modes as initial_modes
from torchnorm.normalizers.mode_norm import mode_norm as mode_norm
from torchnorm.normalizers.multiplicative_noise import DropConnect as DropConnect
from torchnorm.normalizers.multiplicative_noise import MultiplicativeNoise as MultiplicativeNoise
from torchnorm.normalizers.multiplicative_noise import (
    draw_multiplicative_noise as draw_multiplicative_noise,
)
from torchnorm.normalizers.multiplicative_noise import multiplicative_noise as multiplicative_noise
from torchnorm.normalizers.multiplicative_noise import noisy_linear as noisy_linear
from torchnorm.normalizers.multiplicative_noise import positive_probability as positive_probability
from torchnorm.normalizers.online_norm import OnlineControl as OnlineControl
from torchnorm.normalizers.online_norm import OnlineNorm as OnlineNorm
from torchnorm.normalizers.online_norm import OnlineState as OnlineState
from torchnorm.normalizers.online_norm import initial_online_control as initial_online_control
from torchnorm.normalizers.online_norm import initial_online_state as initial_online_state
from torchnorm.normalizers.online_norm import online_norm as online_norm
from torchnorm.normalizers.replace import replace as replace
from torchnorm.normalizers.rms_norm import RMSNorm as RMSNorm
from torchnorm.normalizers.standardize import Standardize as Standardize
from torchnorm.normalizers.stochastic_norm import Moments as Moments
from torchnorm.normalizers.stochastic_norm import StochasticNorm as StochasticNorm
from torchnorm.normalizers.stochastic_norm import draw_batch_noise as draw_batch_noise
from torchnorm.normalizers.stochastic_norm import initial_moments as initial_moments
from torchnorm.normalizers.stochastic_norm import stochastic_norm as stochastic_norm
from torchnorm.normalizers.switchable_norm import SwitchableNorm as SwitchableNorm
from torchnorm.normalizers.switchable_norm import switchable_norm as switchable_norm
from torchnorm.normalizers.weight_norm import weight_norm as weight_norm
