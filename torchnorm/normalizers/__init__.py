"""Other normalizers as functions and modules, one file per method; channels in dimension 1."""

from torchnorm.normalizers.attentive_norm import AttentiveNorm as AttentiveNorm
from torchnorm.normalizers.attentive_norm import AttentiveParams as AttentiveParams
from torchnorm.normalizers.attentive_norm import AttentiveState as AttentiveState
from torchnorm.normalizers.attentive_norm import attentive_norm as attentive_norm
from torchnorm.normalizers.attentive_norm import initial_attentive_state as initial_attentive_state
from torchnorm.normalizers.batch_renorm import BatchRenorm as BatchRenorm
from torchnorm.normalizers.batch_renorm import RenormState as RenormState
from torchnorm.normalizers.batch_renorm import batch_renorm as batch_renorm
from torchnorm.normalizers.batch_renorm import initial_renorm_state as initial_renorm_state
from torchnorm.normalizers.batch_renorm import published_limits as published_limits
from torchnorm.normalizers.batch_stats import BatchStats as BatchStats
from torchnorm.normalizers.batch_stats import initial_batch_stats as initial_batch_stats
from torchnorm.normalizers.iebn import InstanceEnhancementBatchNorm as InstanceEnhancementBatchNorm
from torchnorm.normalizers.iebn import (
    instance_enhancement_batch_norm as instance_enhancement_batch_norm,
)
from torchnorm.normalizers.mixture_norm import MixtureNorm as MixtureNorm
from torchnorm.normalizers.mode_norm import ModeNorm as ModeNorm
from torchnorm.normalizers.multiplicative_noise import DropConnect as DropConnect
from torchnorm.normalizers.multiplicative_noise import MultiplicativeNoise as MultiplicativeNoise
from torchnorm.normalizers.online_norm import OnlineControl as OnlineControl
from torchnorm.normalizers.online_norm import OnlineNorm as OnlineNorm
from torchnorm.normalizers.online_norm import OnlineState as OnlineState
from torchnorm.normalizers.online_norm import initial_online_control as initial_online_control
from torchnorm.normalizers.online_norm import initial_online_state as initial_online_state
from torchnorm.normalizers.online_norm import online_norm as online_norm
from torchnorm.normalizers.replace import replace as replace
from torchnorm.normalizers.standardize import Standardize as Standardize
from torchnorm.normalizers.stochastic_norm import StochasticNorm as StochasticNorm
from torchnorm.normalizers.switchable_norm import SwitchableNorm as SwitchableNorm
from torchnorm.normalizers.switchable_norm import switchable_norm as switchable_norm
