"""Normalizers in the forward pass: the functions behind the layers, [N, *space, C].

channels.py              what they share: moments, running averages, checks
batch_stats.py           a BatchNorm as a part of others
batch_renorm.py          Batch Renormalization
online_norm.py           Online Normalization
switchable_norm.py       Switchable Normalization
attentive_norm.py        Attentive Normalization
iebn.py                  Instance Enhancement Batch Normalization
mixture_norm.py          Mixture Normalization
mode_norm.py             Mode Normalization
stochastic_norm.py       stochastic (Bayesian) normalization
multiplicative_noise.py  noise that is always on, and normalizes
standardize.py           input standardization
samples.py               what the last five share: sums over samples
refusals.py              and what they refuse
"""

from jaxnorm.normalizers import standardize as standardize
from jaxnorm.normalizers.attentive_norm import AttentiveParams as AttentiveParams
from jaxnorm.normalizers.attentive_norm import AttentiveState as AttentiveState
from jaxnorm.normalizers.attentive_norm import attentive_norm as attentive_norm
from jaxnorm.normalizers.attentive_norm import initial_attentive_state as initial_attentive_state
from jaxnorm.normalizers.batch_renorm import RenormState as RenormState
from jaxnorm.normalizers.batch_renorm import batch_renorm as batch_renorm
from jaxnorm.normalizers.batch_renorm import initial_renorm_state as initial_renorm_state
from jaxnorm.normalizers.batch_renorm import published_limits as published_limits
from jaxnorm.normalizers.batch_stats import BatchStats as BatchStats
from jaxnorm.normalizers.batch_stats import initial_batch_stats as initial_batch_stats
from jaxnorm.normalizers.iebn import (
    instance_enhancement_batch_norm as instance_enhancement_batch_norm,
)
from jaxnorm.normalizers.mixture_norm import Mixture as Mixture
from jaxnorm.normalizers.mixture_norm import initial_mixture as initial_mixture
from jaxnorm.normalizers.mixture_norm import mixture_norm as mixture_norm
from jaxnorm.normalizers.mode_norm import Modes as Modes
from jaxnorm.normalizers.mode_norm import initial_modes as initial_modes
from jaxnorm.normalizers.mode_norm import mode_norm as mode_norm
from jaxnorm.normalizers.multiplicative_noise import (
    draw_multiplicative_noise as draw_multiplicative_noise,
)
from jaxnorm.normalizers.multiplicative_noise import multiplicative_noise as multiplicative_noise
from jaxnorm.normalizers.multiplicative_noise import noisy_dense as noisy_dense
from jaxnorm.normalizers.multiplicative_noise import positive_probability as positive_probability
from jaxnorm.normalizers.online_norm import OnlineControl as OnlineControl
from jaxnorm.normalizers.online_norm import OnlineState as OnlineState
from jaxnorm.normalizers.online_norm import initial_online_control as initial_online_control
from jaxnorm.normalizers.online_norm import initial_online_state as initial_online_state
from jaxnorm.normalizers.online_norm import online_norm as online_norm
from jaxnorm.normalizers.stochastic_norm import Moments as Moments
from jaxnorm.normalizers.stochastic_norm import draw_batch_noise as draw_batch_noise
from jaxnorm.normalizers.stochastic_norm import initial_moments as initial_moments
from jaxnorm.normalizers.stochastic_norm import stochastic_norm as stochastic_norm
from jaxnorm.normalizers.switchable_norm import switchable_norm as switchable_norm
