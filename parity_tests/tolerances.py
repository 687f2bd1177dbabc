"""The one table of tolerances, and the one way in which errors are measured.

An error is norm-wise in a slice: max|actual - expected| / max|expected|. Element-wise relative
errors cannot be promised (entries near zero), and one norm over a whole array would hide a wrong
small feature behind a right large one. So every neuron and every feature is a slice of its own.

What a gradient may be off by does not depend on the order of its sums. A sum of n products that is
computed with unit roundoff u is off by at most about n u sum|products|, whatever its order; where
the roundings are independent, as in practice, by z sqrt(n) u sum|products| in all but
2 exp(-z^2 / 2) of the cases (Higham and Mary, SIAM J. Sci. Comput. 41(5), 2019). How large
sum|products| is beside the result is a matter of the case, not of the implementation: of how far
the inputs lie from where they are summed about, beside their spread. `matrix.rounding` computes it
for every entry of a gradient. A slice is measured in the larger of two units, its own size and
what these roundings make of it divided by its gate; so sums that do not cancel have `GATE`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

#: Largest error of a slice, by the dtype in which the layer computes.
GATE: dict[str, float] = {"float64": 1e-13, "float32": 5e-6}

#: z above. Over orders, seeds and families, measured errors reach what z = 1 allows; most are below
#: a third of it.
DEVIATIONS = 3.0

#: In low precision the measure is the textbook formula in the same dtype: at most this many times
#: its error, plus one rounding of the result.
LOW_PRECISION_FACTOR = 2.0
ROUNDING: dict[str, float] = {"bfloat16": 2.0**-8, "float16": 2.0**-11}

#: Beyond this the textbook formula itself is broken (an overflow, say) and measures nothing.
TEXTBOOK = 0.1

#: How close to a kink of the gate a pre-activation may lie, in units of sum|x w|: closer, and
#: rounding decides on which side it falls, which no implementation can be blamed for.
KINK_MARGIN: dict[str, float] = {"float64": 1e-13, "float32": 2e-6}


class _Difference(NamedTuple):
    """Step of a central difference, and what its truncation and rounding leave."""

    step: float
    gate: float


#: Derivatives of the activations against central differences.
DERIVATIVE = _Difference(step=1e-5, gate=1e-9)

#: A step in neuron coordinates against one that was computed otherwise; several steps of an
#: optimizer that divides by roots of squares; and JAX against PyTorch over 50 steps. All float64.
SAME_STEP, SAME_STEPS, LOCK_STEP = 1e-12, 1e-11, 1e-10

#: Whole models of anyone, Flax against PyTorch (`parity_tests.port`), in the norm of an array; deep
#: networks amplify roundings. The same of what some steps of an optimizer change. And the share of
#: all gradients' norm that counts as the least norm of one: that of a bias before a normalization
#: is zero but for roundings.
PORT: dict[str, float] = {"float64": 1e-9, "float32": 1e-4}
PORT_STEPS: dict[str, float] = {"float64": 1e-9, "float32": 1e-3}
PORT_FLOOR: dict[str, float] = {"float64": 1e-4, "float32": 1e-2}

#: What float32 leaves of a sum about another place than the mean, or of an average of gradients.
SINGLE = 1e-5

#: In training, errors of one step enter the next: the gate of step k is k times this, times `GATE`.
TRAINING_GROWTH = 1.0

#: "Not the same" in tests of properties: far above rounding, far below the effect.
VISIBLE = 1e-3


def summation(count: int, dtype: Any) -> float:
    """What a sum of so many terms may be off by, in any order, in units of sum|terms|."""
    return DEVIATIONS * float(np.sqrt(count) * np.finfo(dtype).eps / 2)


def slice_error(
    actual: ArrayLike,
    expected: ArrayLike,
    *,
    axes: Sequence[int] = (-1,),
    unit: ArrayLike = 0.0,
) -> float:
    """Worst error over the slices along each of `axes`; `()` takes the whole array as one slice.

    A wrong shape or a value that is not finite is an infinite error; so is anything but zero where
    a whole slice should be zero. Where expected values are smaller than their `unit`, the error is
    measured in that unit.

    Raises:
        AssertionError: `expected` cannot prove anything, because it is empty, zero, or not finite.
    """
    a, b = np.asarray(actual, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    telling = b.size > 0 and np.isfinite(b).all() and np.any(b)
    assert telling, "this comparison would prove nothing"
    if a.shape != b.shape or not np.isfinite(a).all():
        return float("inf")
    difference, magnitude = np.abs(a - b), np.maximum(np.abs(b), unit)
    if not axes:
        return float(difference.max() / magnitude.max())
    worst = 0.0
    for axis in axes:
        others = tuple(k for k in range(b.ndim) if k != axis % b.ndim)
        wrong, size = difference.max(others), magnitude.max(others)
        zero = size == 0
        if np.any(wrong[zero] > 0):
            return float("inf")
        worst = max(worst, float(np.max(wrong[~zero] / size[~zero], initial=0.0)))
    return worst
