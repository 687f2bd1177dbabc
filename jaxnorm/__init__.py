"""Normalization in the gradient instead of the forward pass, for JAX, Flax and Optax.

The twin of `torchnorm`: same rooms, same names, same numbers.
"""

try:
    import flax as _flax
    import jax as _jax
    import optax as _optax
except ImportError as error:
    raise ImportError(
        f"jaxnorm: got no module named {error.name!r}, expected jax, flax and optax; "
        "install them with: pip install 'neuronwise-norm[jax]'"
    ) from error
del _flax, _jax, _optax

from importlib.metadata import PackageNotFoundError, version

from jaxnorm import analysis as analysis
from jaxnorm import linen as linen
from jaxnorm import nnx as nnx
from jaxnorm import penalties as penalties
from jaxnorm.activations import DEFERRED as DEFERRED
from jaxnorm.activations import JointGate as JointGate
from jaxnorm.checkpoints.convert import from_torch as from_torch
from jaxnorm.checkpoints.convert import to_torch as to_torch
from jaxnorm.functional import neuronwise_conv as neuronwise_conv
from jaxnorm.functional import neuronwise_conv_transpose as neuronwise_conv_transpose
from jaxnorm.functional import neuronwise_dense as neuronwise_dense
from jaxnorm.functional import neuronwise_einsum as neuronwise_einsum
from jaxnorm.functional import neuronwise_op as neuronwise_op
from jaxnorm.functional import tell_gate as tell_gate
from jaxnorm.masks import neuron_mask as neuron_mask
from jaxnorm.optim.bnp import scale_by_bnp as scale_by_bnp
from jaxnorm.optim.centralize import centralize as centralize
from jaxnorm.optim.in_neuron_coordinates import in_neuron_coordinates as in_neuron_coordinates
from jaxnorm.optim.proximal import proximal as proximal
from jaxnorm.optim.quasi_diagonal import scale_by_quasi_diagonal as scale_by_quasi_diagonal
from jaxnorm.optim.skipped_steps import skipped_steps as skipped_steps
from jaxnorm.optim.update_statistics import skip_statistics as skip_statistics
from jaxnorm.optim.update_statistics import update_statistics as update_statistics
from jaxnorm.program.neuronwise import find_gates as find_gates
from jaxnorm.program.neuronwise import init_statistics as init_statistics
from jaxnorm.program.neuronwise import neuronwise as neuronwise
from jaxnorm.rule import BNP as BNP
from jaxnorm.rule import CENTERED as CENTERED
from jaxnorm.rule import NEURONWISE as NEURONWISE
from jaxnorm.rule import PLAIN as PLAIN
from jaxnorm.rule import QUASI_DIAGONAL as QUASI_DIAGONAL
from jaxnorm.rule import Rule as Rule
from jaxnorm.rule import due_steps as due_steps
from jaxnorm.statistics.moments import neuron_moments as neuron_moments

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
    "JointGate",
    "Rule",
    "analysis",
    "centralize",
    "due_steps",
    "find_gates",
    "from_torch",
    "in_neuron_coordinates",
    "init_statistics",
    "neuron_mask",
    "neuron_moments",
    "neuronwise",
    "neuronwise_conv",
    "neuronwise_conv_transpose",
    "neuronwise_dense",
    "neuronwise_einsum",
    "neuronwise_op",
    "penalties",
    "proximal",
    "scale_by_bnp",
    "scale_by_quasi_diagonal",
    "skip_statistics",
    "skipped_steps",
    "tell_gate",
    "to_torch",
    "update_statistics",
]
