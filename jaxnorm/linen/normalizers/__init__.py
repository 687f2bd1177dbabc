"""Other normalizers as layers of Flax linen, one file per method."""

from jaxnorm.linen.normalizers.mixture_norm import MixtureNorm as MixtureNorm
from jaxnorm.linen.normalizers.mode_norm import ModeNorm as ModeNorm
from jaxnorm.linen.normalizers.multiplicative_noise import DropConnect as DropConnect
from jaxnorm.linen.normalizers.multiplicative_noise import (
    MultiplicativeNoise as MultiplicativeNoise,
)
from jaxnorm.linen.normalizers.replace import replace as replace
from jaxnorm.linen.normalizers.standardize import Standardize as Standardize
from jaxnorm.linen.normalizers.stochastic_norm import StochasticNorm as StochasticNorm
