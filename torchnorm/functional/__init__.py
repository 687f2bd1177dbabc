"""The rule as functions: one for each operation of the framework."""

from torchnorm.functional.functions import neuronwise_conv1d as neuronwise_conv1d
from torchnorm.functional.functions import neuronwise_conv2d as neuronwise_conv2d
from torchnorm.functional.functions import neuronwise_conv3d as neuronwise_conv3d
from torchnorm.functional.functions import (
    neuronwise_conv_transpose1d as neuronwise_conv_transpose1d,
)
from torchnorm.functional.functions import (
    neuronwise_conv_transpose2d as neuronwise_conv_transpose2d,
)
from torchnorm.functional.functions import (
    neuronwise_conv_transpose3d as neuronwise_conv_transpose3d,
)
from torchnorm.functional.functions import neuronwise_linear as neuronwise_linear
from torchnorm.functional.functions import tell_gate as tell_gate
