"""The epsilon of RMSNorm."""

from typing import Any

import jax.numpy as jnp

from jaxnorm.normalizers.conventions import epsilon_of
from jaxnorm.precision import at_least_float32


def rms_epsilon(value: Any, default: float | None, dtype: Any) -> float:
    """The number to add to the mean square; None stands for the spacing of numbers around 1.

    PyTorch's default is that of the dtype in which it computes: of float32 for lower precision.
    """
    epsilon = None if value is None else epsilon_of(value, default)
    if epsilon is None:
        return float(jnp.finfo(at_least_float32(dtype)).eps)
    return epsilon
