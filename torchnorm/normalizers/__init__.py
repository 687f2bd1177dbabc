"""Other normalizers as functions and modules, one file per method; channels in dimension 1."""

from torchnorm.normalizers.mixture_norm import MixtureNorm as MixtureNorm
from torchnorm.normalizers.mode_norm import ModeNorm as ModeNorm
from torchnorm.normalizers.multiplicative_noise import DropConnect as DropConnect
from torchnorm.normalizers.multiplicative_noise import MultiplicativeNoise as MultiplicativeNoise
from torchnorm.normalizers.replace import replace as replace
from torchnorm.normalizers.standardize import Standardize as Standardize
from torchnorm.normalizers.stochastic_norm import StochasticNorm as StochasticNorm
