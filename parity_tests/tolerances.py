"""The one table of tolerances, and the one way in which errors are measured.

An error is norm-wise in a slice: max|actual - expected| / max|expected|. Element-wise relative
errors cannot be promised (entries near zero), and one norm over a whole array would hide a wrong
small feature behind a right large one. So every neuron and every feature is a slice of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from parity_tests.oracle import View

#: Largest error of a slice, by the dtype in which the layer computes.
GATE: dict[str, float] = {"float64": 1e-13, "float32": 5e-6}

#: What is made of the plain gradient has lost the digits that cancel in g_W - mean g_b: as many as
#: |mean| / sigma has. Its gates are wider by this.
CANCELLATION = 20.0
#: In these families of cases.
CANCELLING = ("constant", "large_mean", "wide")

#: In low precision the measure is the textbook formula in the same dtype: at most this many times
#: its error, plus one rounding of the result.
LOW_PRECISION_FACTOR = 2.0
ROUNDING: dict[str, float] = {"bfloat16": 2.0**-8, "float16": 2.0**-11}

#: Beyond this the textbook formula itself is broken (an overflow, say) and measures nothing.
TEXTBOOK = 0.1

#: A float32 feature whose |mean| is more than this many standard deviations has lost digits before
#: it is stored; its gate grows by the ratio of the two. float64 has digits to spare: no relief.
LARGE_MEAN = 10.0

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

#: What float32 leaves of a sum about another place than the mean, or of an average of gradients.
SINGLE = 1e-5

#: In training, errors of one step enter the next: the gate of step k is k times this, times `GATE`.
TRAINING_GROWTH = 1.0

#: "Not the same" in tests of properties: far above rounding, far below the effect.
VISIBLE = 1e-3


@dataclass(frozen=True, eq=False)
class Relief:
    """What the inputs excuse: a factor, a spread and whether it is constant, for each feature."""

    factor: NDArray[np.float64]
    spread: NDArray[np.float64]
    constant: NDArray[np.bool_]

    @classmethod
    def of(cls, x: ArrayLike) -> Relief:
        """Read it off the inputs, x[..., I], in the dtype in which they are stored."""
        single = np.asarray(x).dtype == np.float32
        rows = np.asarray(x, dtype=np.float64)
        rows = rows.reshape(-1, rows.shape[-1])
        spread = rows.std(0)
        constant = np.ptp(rows, axis=0) == 0
        ratio = np.divide(np.abs(rows.mean(0)), spread, out=np.zeros_like(spread), where=~constant)
        factor = np.maximum(ratio / LARGE_MEAN, 1.0) if single else np.ones_like(ratio)
        return cls(factor, spread, constant)

    def over(self, view: View, *, by_channel: bool) -> Relief:
        """That of the rows of `view.by_channel`, or of `view.by_neuron`.

        `self` is that of the patches, all groups side by side. Taps and groups that share a row
        have the relief of the worst of them, and are constant if all of them are.
        """
        inputs, groups, _ = view.kernel.shape
        axes, shape = (1, (groups, view.taps, -1)) if by_channel else (0, (groups, inputs))
        return Relief(
            self.factor.reshape(shape).max(axes).ravel(),
            self.spread.reshape(shape).max(axes).ravel(),
            self.constant.reshape(shape).all(axes).ravel(),
        )

    @property
    def worst(self) -> float:
        """The factor of the worst feature, for quantities in which all features meet."""
        return float(self.factor.max())


def slice_error(
    actual: ArrayLike,
    expected: ArrayLike,
    *,
    axes: Sequence[int] = (-1,),
    relief: Relief | None = None,
    unit: ArrayLike = 0.0,
) -> float:
    """Worst error over the slices along each of `axes`; `()` takes the whole array as one slice.

    A wrong shape or a value that is not finite is an infinite error; so is anything but zero where
    a whole slice should be zero. With `relief`, axis 0 of a matrix counts features. Where expected
    values are smaller than their `unit`, the error is measured in that unit.

    Raises:
        AssertionError: `expected` cannot prove anything, because it is empty, zero, or not finite.
    """
    a, b = np.asarray(actual, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    telling = b.size > 0 and np.isfinite(b).all() and np.any(b)
    assert telling, "this comparison would prove nothing"
    if a.shape != b.shape or not np.isfinite(a).all():
        return float("inf")
    difference, magnitude = np.abs(a - b), np.maximum(np.abs(b), unit)
    if relief is not None and b.ndim == 2:
        difference = difference / relief.factor[:, None]
    elif relief is not None:
        difference = difference / relief.worst
    if not axes:
        return float(difference.max() / magnitude.max())
    worst = 0.0
    for axis in axes:
        others = tuple(k for k in range(b.ndim) if k != axis % b.ndim)
        wrong, size = difference.max(others), magnitude.max(others)
        if relief is not None and axis == 0:
            wrong, size = wrong[~relief.constant], size[~relief.constant]
        zero = size == 0
        if np.any(wrong[zero] > 0):
            return float("inf")
        worst = max(worst, float(np.max(wrong[~zero] / size[~zero], initial=0.0)))
    return worst
