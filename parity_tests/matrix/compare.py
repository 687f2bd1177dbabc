"""One case, one implementation: every error, and whether it is within its gate."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from parity_tests.cases import Case
from parity_tests.implementations import Gradients, Implementation
from parity_tests.tolerances import CANCELLING, GATE, slice_error

#: In the order in which they are printed; mean and sigma of dense layers only.
QUANTITIES = ("z", "g_x", "g_kernel", "g_bias", "mean", "sigma")

#: Those in which deviations from a mean enter, so that a large mean has cost digits.
RELIEVED = ("g_kernel", "g_bias", "sigma")


class Finding(NamedTuple):
    """An error, and what it may be."""

    quantity: str
    error: float
    gate: float

    @property
    def miss(self) -> bool:
        """Whether it is more than it may be."""
        return not self.error <= self.gate


def error_of(quantity: str, actual: np.ndarray, expected: np.ndarray, case: Case) -> float:
    """Error of one quantity, measured in its slices: each neuron, each channel of the input."""
    if actual.shape != expected.shape:
        return float("inf")
    view, relief = case.view, case.relief if quantity in RELIEVED else None
    if quantity == "g_bias":  # one number per neuron, hence one slice as a whole
        return slice_error(actual.ravel(), expected.ravel(), axes=(), relief=relief)
    if quantity in ("z", "g_x"):
        index = view.z.reshape(len(view.z), -1) if quantity == "z" else view.channels
        return slice_error(actual.ravel()[index], expected.ravel()[index])
    # A mean is a place: near zero its own size says nothing, but the spread around it does.
    unit = case.relief.spread[:, None] if quantity == "mean" else 0.0
    neurons = slice_error(
        view.by_neuron(actual),
        view.by_neuron(expected),
        relief=relief and relief.over(view, by_channel=False),
        unit=unit,
    )
    channels = slice_error(
        view.by_channel(actual),
        view.by_channel(expected),
        axes=(0,),
        relief=relief and relief.over(view, by_channel=True),
        unit=unit,
    )
    return max(neurons, channels)


def finding(
    quantity: str,
    actual: np.ndarray | None,
    expected: np.ndarray | None,
    case: Case,
    slack: float = 1.0,
) -> Finding:
    """Compare one quantity; a missing array or one of the wrong dtype is infinitely wrong."""
    error = float("inf")
    if actual is None or expected is None:
        error = 0.0 if actual is expected else error
    elif actual.dtype == (case.x.dtype if quantity in Gradients._fields else case.statistics_dtype):
        error = error_of(quantity, actual, expected, case)
    return Finding(quantity, error, GATE[case.dtype] * slack)


def gradients(
    case: Case, actual: Gradients, expected: Any = None, slack: float = 1.0
) -> list[Finding]:
    """Compare with the oracle, or with the result of another implementation."""
    reference = case.expected if expected is None else expected
    wide = {"g_kernel": slack, "g_bias": slack}
    return [
        finding(q, getattr(actual, q), getattr(reference, q), case, wide.get(q, 1.0))
        for q in Gradients._fields
    ]


def moments(case: Case, actual: tuple[np.ndarray, np.ndarray]) -> list[Finding]:
    """Compare mean and sigma with the oracle's."""
    expected = case.expected_moments
    return [finding(q, getattr(actual, q), getattr(expected, q), case) for q in ("mean", "sigma")]


def examine(case: Case, implementation: Implementation) -> list[Finding]:
    """Everything an implementation returns for a case, against the oracle."""
    slack = implementation.slack if case.family in CANCELLING else 1.0
    found = gradients(case, implementation.gradients(case), slack=slack)
    return found + (moments(case, implementation.moments(case)) if case.dense else [])


def misses(findings: list[Finding]) -> list[Finding]:
    """Keep those out of their gate; an assert on the result shows them with their errors."""
    return [f for f in findings if f.miss]
