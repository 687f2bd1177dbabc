"""The rule as functions, one for each operation of Flax and one for any other.

dense.py        `neuronwise_dense`, whose text holds for all of them
convolution.py  `neuronwise_conv`, `neuronwise_conv_transpose`
einsum.py       `neuronwise_einsum`
operation.py    `neuronwise_op`
"""

from jaxnorm.backward.deferred import tell_gate
from jaxnorm.functional.convolution import neuronwise_conv, neuronwise_conv_transpose
from jaxnorm.functional.dense import neuronwise_dense
from jaxnorm.functional.einsum import neuronwise_einsum
from jaxnorm.functional.operation import neuronwise_op

__all__ = [
    "neuronwise_conv",
    "neuronwise_conv_transpose",
    "neuronwise_dense",
    "neuronwise_einsum",
    "neuronwise_op",
    "tell_gate",
]
