"""The only definition of "right": NumPy, float64, no framework.

`rule` is the rule itself, for dense layers; `operations` says what any other operation reads, as a
dense layer on explicit patches; `activations` are the gates.
"""

from parity_tests.oracle.activations import GATES, JOINT, Array, Elementwise, Gate, slope
from parity_tests.oracle.operations import (
    Convolution,
    ConvTranspose,
    Dense,
    Einsum,
    Operation,
    Shape,
    TorchConvTranspose,
    View,
)
from parity_tests.oracle.rule import (
    Knobs,
    Layer,
    Moments,
    dense,
    forward,
    linear,
    moments,
    sample_weight,
    spaced,
    unit,
    weight_gradients,
)

__all__ = [
    "GATES",
    "JOINT",
    "Array",
    "ConvTranspose",
    "Convolution",
    "Dense",
    "Einsum",
    "Elementwise",
    "Gate",
    "Knobs",
    "Layer",
    "Moments",
    "Operation",
    "Shape",
    "TorchConvTranspose",
    "View",
    "dense",
    "forward",
    "linear",
    "moments",
    "sample_weight",
    "slope",
    "spaced",
    "unit",
    "weight_gradients",
]
