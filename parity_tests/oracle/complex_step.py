"""Exact gradients of a NumPy function without deriving them: the complex step.

For a real-analytic f, f(x + i h e) = f(x) + i h df/dx(e) + O(h^2), and with h = 1e-30 nothing is
left of the O(h^2): the imaginary part is the derivative to rounding, since nothing is subtracted
(Squire and Trapp, SIAM Review 40(1), 1998). The function must compute for complex numbers: no
`abs`, `conj` or comparison of a complex number; what has no gradient is its `.real`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from parity_tests.oracle.activations import Array

#: So small that its square is lost, so large that its product with a gradient is not.
STEP = 1e-30


def vjp(
    f: Callable[[Mapping[str, Any]], Any], arrays: Mapping[str, Array], cotangent: Array
) -> dict[str, Array]:
    """Gradient of ``sum(f(arrays) * cotangent)`` in every entry of every array.

    Args:
        f: a function of named arrays, see above.
        arrays: where.
        cotangent: of the shape of what `f` returns.
    """
    found: dict[str, Array] = {}
    for name, array in arrays.items():
        gradient = np.zeros(array.shape)
        for index in np.ndindex(array.shape):
            moved = array.astype(np.complex128)
            moved[index] += 1j * STEP
            gradient[index] = (f({**arrays, name: moved}).imag * cotangent).sum() / STEP
        found[name] = gradient
    return found
