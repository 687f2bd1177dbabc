"""The rule as functions: one for each operation of the framework."""

from jaxnorm.functional.functions import neuronwise_conv as neuronwise_conv
from jaxnorm.functional.functions import neuronwise_conv_transpose as neuronwise_conv_transpose
from jaxnorm.functional.functions import neuronwise_dense as neuronwise_dense
from jaxnorm.functional.functions import neuronwise_einsum as neuronwise_einsum
from jaxnorm.functional.functions import neuronwise_op as neuronwise_op
from jaxnorm.functional.functions import tell_gate as tell_gate
