"""What everything that claims to compute the rule must do: NumPy in, NumPy out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np

from parity_tests.cases import Case


class Gradients(NamedTuple):
    """What a layer returns, forward and backward; kernels in the layout of the case."""

    z: np.ndarray
    g_x: np.ndarray
    g_kernel: np.ndarray
    g_bias: Any  # None without a bias


class Statistics(NamedTuple):
    """Mean and sigma of the inputs as each neuron sees them, in the layout [I,O]."""

    mean: np.ndarray
    sigma: np.ndarray


class Implementation(ABC):
    """Something that computes a neuron-wise layer."""

    name: str
    #: Whether it makes the gradient from the plain one, whose sums are about zero.
    plain = False
    #: Whether a case does not make it compile everything anew.
    quick = True

    @abstractmethod
    def supports(self, case: Case) -> bool:
        """Whether it has the operation of the case at all."""

    @abstractmethod
    def gradients(self, case: Case) -> Gradients:
        """Run the layer forward and backward on the cotangent of the case."""

    @abstractmethod
    def moments(self, case: Case) -> Statistics:
        """Mean and sigma [I,O] of the inputs of a dense case under its sample weights."""
