"""The rule as functions, one for each operation of PyTorch.

dense.py        `neuronwise_linear`, whose text holds for all of them
convolution.py  `neuronwise_conv1d` to `neuronwise_conv_transpose3d`
"""

from torchnorm.backward.deferred import tell_gate
from torchnorm.functional.convolution import (
    neuronwise_conv1d,
    neuronwise_conv2d,
    neuronwise_conv3d,
    neuronwise_conv_transpose1d,
    neuronwise_conv_transpose2d,
    neuronwise_conv_transpose3d,
)
from torchnorm.functional.dense import neuronwise_linear

__all__ = [
    "neuronwise_conv1d",
    "neuronwise_conv2d",
    "neuronwise_conv3d",
    "neuronwise_conv_transpose1d",
    "neuronwise_conv_transpose2d",
    "neuronwise_conv_transpose3d",
    "neuronwise_linear",
    "tell_gate",
]
