"""Every output, gradient and state of a case against its gate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from parity_tests.matrix.compare import Finding
from parity_tests.normalizers.case import Case, Result

#: Largest error in units of the largest expected entry, by the dtype of the inputs.
GATE = {"float64": 1e-12, "float32": 2e-5, "bfloat16": 2.0**-5}


def gate(case: Case) -> float:
    """What may be off: more where the inputs lie far from 0, in units of their spread.

    A mean is known to a rounding of itself, and that is what centered inputs are off by.
    """
    unit = np.finfo(np.float64 if case.dtype == "float64" else np.float32).eps
    far = max(_distance(call["x"].reshape(-1, call["x"].shape[-1])) for call in case.calls)
    return max(GATE[case.dtype], 8 * float(unit) * float(far))


def _distance(x: np.ndarray) -> float:
    """How far from 0 the worst channel lies, in units of its own spread; constants do not count."""
    spread = x.std(0)
    varies = spread > 0
    return float((np.abs(x).max(0)[varies] / spread[varies]).max(initial=1.0))


def compare(case: Case, actual: Sequence[Result], expected: Sequence[Result]) -> list[Finding]:
    """Of each quantity the largest error over all calls."""
    worst: dict[str, float] = {}
    for one, other in zip(actual, expected, strict=True):
        for name, error in _errors(one, other):
            worst[name] = max(worst.get(name, 0.0), error)
    return [Finding(name, error, gate(case)) for name, error in worst.items()]


def _errors(actual: Result, expected: Result) -> Iterator[tuple[str, float]]:
    yield "y", error(actual.y, expected.y)
    if actual.gradients.keys() != expected.gradients.keys():
        yield "g_parameters", float("inf")
    if actual.state.keys() != expected.state.keys():
        yield "state", float("inf")
    for name in sorted(actual.gradients.keys() & expected.gradients.keys()):
        quantity = "g_x" if name == "x" else "g_parameters"
        # Where the gradient is 0, it is what is left of terms of the size of the cotangent.
        yield quantity, error(actual.gradients[name], expected.gradients[name], unit=1.0)
    for name in sorted(actual.state.keys() & expected.state.keys()):
        yield "state", error(actual.state[name], expected.state[name])


def error(actual: np.ndarray, expected: np.ndarray, *, unit: float = 0.0) -> float:
    """Largest difference in units of the largest expected entry, or of `unit` if that is larger."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    if actual.shape != expected.shape or not np.isfinite(actual).all():
        return float("inf")
    difference = np.abs(actual - expected).max(initial=0.0)
    return float(difference / max(np.abs(expected).max(initial=0.0), unit, 1e-300))
