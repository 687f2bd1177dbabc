"""Normalization in the gradient instead of the forward pass, for PyTorch.

The twin of `jaxnorm`: same rooms, same names, same numbers.
"""

try:
    import torch as _torch
except ImportError as error:
    raise ImportError(
        f"torchnorm: got no module named {error.name!r}, expected torch; "
        "install it with: pip install 'neuronwise-norm[torch]'"
    ) from error
del _torch

from importlib.metadata import PackageNotFoundError, version

from torchnorm import analysis as analysis
from torchnorm import functional as functional
from torchnorm import normalizers as normalizers
from torchnorm import optim as optim
from torchnorm import penalties as penalties
from torchnorm import recurrent as recurrent
from torchnorm.activations import DEFERRED as DEFERRED
from torchnorm.activations import JointGate as JointGate
from torchnorm.conversion.convert import convert as convert
from torchnorm.conversion.convert import revert as revert
from torchnorm.conversion.report import Report as Report
from torchnorm.functional import tell_gate as tell_gate
from torchnorm.masks import neuron_mask as neuron_mask
from torchnorm.modules.conv import Conv1d as Conv1d
from torchnorm.modules.conv import Conv2d as Conv2d
from torchnorm.modules.conv import Conv3d as Conv3d
from torchnorm.modules.conv import ConvTranspose1d as ConvTranspose1d
from torchnorm.modules.conv import ConvTranspose2d as ConvTranspose2d
from torchnorm.modules.conv import ConvTranspose3d as ConvTranspose3d
from torchnorm.modules.linear import Linear as Linear
from torchnorm.modules.registered import register as register
from torchnorm.modules.registered import unregister as unregister
from torchnorm.prepare import Prepared as Prepared
from torchnorm.prepare import prepare as prepare
from torchnorm.rule import BNP as BNP
from torchnorm.rule import CENTERED as CENTERED
from torchnorm.rule import NEURONWISE as NEURONWISE
from torchnorm.rule import PLAIN as PLAIN
from torchnorm.rule import QUASI_DIAGONAL as QUASI_DIAGONAL
from torchnorm.rule import Rule as Rule
from torchnorm.statistics.moments import neuron_moments as neuron_moments

try:
    __version__ = version("neuronwise-norm")
except PackageNotFoundError:  # a checkout that was not installed
    __version__ = "0+unknown"

__all__ = [
    "BNP",
    "CENTERED",
    "DEFERRED",
    "NEURONWISE",
    "PLAIN",
    "QUASI_DIAGONAL",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "JointGate",
    "Linear",
    "Prepared",
    "Report",
    "Rule",
    "analysis",
    "convert",
    "neuron_mask",
    "neuron_moments",
    "normalizers",
    "penalties",
    "prepare",
    "recurrent",
    "register",
    "revert",
    "tell_gate",
    "unregister",
]
