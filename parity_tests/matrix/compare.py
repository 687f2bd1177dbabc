"""One case, one implementation: every error, and whether it is within its gate."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from parity_tests.cases import Case
from parity_tests.implementations import Gradients, Implementation
from parity_tests.matrix import rounding
from parity_tests.tolerances import GATE, slice_error

#: In the order in which they are printed; mean and sigma of dense layers only.
QUANTITIES = ("z", "g_x", "g_kernel", "g_bias", "mean", "sigma")


class Finding(NamedTuple):
    """An error, and what it may be."""

    quantity: str
    error: float
    gate: float

    @property
    def miss(self) -> bool:
        """Whether it is more than it may be."""
        return not self.error <= self.gate


def error_of(
    quantity: str, actual: np.ndarray, expected: np.ndarray, case: Case, unit: Any = None
) -> float:
    """Error of one quantity, measured in its slices: each neuron, each channel of the input.

    Args:
        quantity: one of `QUANTITIES`.
        actual: what is measured.
        expected: what is right.
        case: tells the slices.
        unit: the least in which an entry is measured, of the shape of `expected`. Without it the
            gradients of constant channels are left out: right is 0, and all else is rounding.
    """
    if actual.shape != expected.shape:
        return float("inf")
    view = case.view
    if quantity == "g_bias":  # one number per neuron, hence one slice as a whole
        return slice_error(actual, expected, axes=(), unit=0.0 if unit is None else unit)
    if quantity in ("z", "g_x"):
        index = view.z.reshape(len(view.z), -1) if quantity == "z" else view.channels
        least = 0.0 if unit is None else unit.ravel()[index]
        return slice_error(actual.ravel()[index], expected.ravel()[index], unit=least)
    some = np.ones(view.channels.shape[1], bool)
    if quantity == "mean":
        # A mean is a place: near zero its own size says nothing, but the spread around it does.
        unit = np.broadcast_to(case.rows.astype(np.float64).std(0)[:, None], expected.shape)
    elif unit is None:
        unit = np.zeros(expected.shape)
        some = np.ptp(case.x.ravel()[view.channels].astype(np.float64), axis=0) > 0
    neurons = (view.by_neuron(a) for a in (actual, expected, unit))
    channels = (view.by_channel(a)[some] for a in (actual, expected, unit))
    return max(
        slice_error(a, b, axes=(axis,), unit=c)
        for axis, (a, b, c) in ((-1, neurons), (0, channels))
    )


def finding(
    quantity: str,
    actual: np.ndarray | None,
    expected: np.ndarray | None,
    case: Case,
    allowed: Any = None,
) -> Finding:
    """Compare one quantity; a missing array or one of the wrong dtype is infinitely wrong.

    `allowed` is what roundings may make of each entry, see `rounding`.
    """
    error, gate = float("inf"), GATE[case.dtype]
    if actual is None or expected is None:
        error = 0.0 if actual is expected else error
    elif actual.dtype == (case.x.dtype if quantity in Gradients._fields else case.statistics_dtype):
        unit = None if allowed is None else allowed / gate
        error = error_of(quantity, actual, expected, case, unit)
    return Finding(quantity, error, gate)


def gradients(
    case: Case, actual: Gradients, expected: Any = None, *, plain: bool = False
) -> list[Finding]:
    """Compare with the oracle, or with the result of another implementation.

    `plain` says that they are made from the plain gradient.
    """
    reference, results = (case.expected, 1) if expected is None else (expected, 2)
    allowed = rounding.bound(case, plain=plain)._asdict()
    return [
        finding(
            quantity,
            getattr(actual, quantity),
            getattr(reference, quantity),
            case,
            None if allowed.get(quantity) is None else results * allowed[quantity],
        )
        for quantity in Gradients._fields
    ]


def moments(case: Case, actual: tuple[np.ndarray, np.ndarray]) -> list[Finding]:
    """Compare mean and sigma with the oracle's."""
    expected = case.expected_moments
    return [finding(q, getattr(actual, q), getattr(expected, q), case) for q in ("mean", "sigma")]


def examine(case: Case, implementation: Implementation) -> list[Finding]:
    """Everything an implementation returns for a case, against the oracle."""
    found = gradients(case, implementation.gradients(case), plain=implementation.plain)
    return found + (moments(case, implementation.moments(case)) if case.dense else [])


def misses(findings: list[Finding]) -> list[Finding]:
    """Keep those out of their gate; an assert on the result shows them with their errors."""
    return [f for f in findings if f.miss]
