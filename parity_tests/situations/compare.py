"""Both packages against the reference, and what the roundings of a case may come to.

How many digits a step has is a matter of the case: of means beside spreads, of what cancels, of
Adam, which brings a gradient of any size to size 1. So the reference is run again with a random
rounding of every intermediate result, and nobody is asked for more digits than it keeps. Errors are
measured in the change that training has made: of all weights of a neuron, and of all that read one
feature.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from parity_tests.numerics import exact
from parity_tests.situations import values as arrays
from parity_tests.situations.case import Case
from parity_tests.situations.reference import Reference
from parity_tests.situations.roundings import Exact, Roundings
from parity_tests.situations.values import Params, Values

#: What is asked for where nothing is lost, by dtype.
GATE = {"float64": 5e-11, "float32": 5e-5}
#: Runs with random roundings, and by how many times the worst of them an error may exceed it.
RUNS, FACTOR = 3, 50.0
#: So many roundings a stored result may have had.
STORED = 6.0
#: Where roundings alone change a step by this much, the comparison would prove nothing.
UNCLEAR = 0.03


@dataclass(frozen=True)
class Outcome:
    """What a comparison has found.

    Attributes:
        error: the worst, beside the change that training has made.
        miss: the worst beside what it may be; a miss above 1.
        where: that was.
        clear: the share of the slices in which an error could have been seen.
        crash: what was raised, or "".
        far: whether samples lie far from where a package can take their sums (the parts of a first
            batch from 0), or vary by hardly more than roundings: then digits are lost, or a step.
    """

    error: float = 0.0
    miss: float = 0.0
    where: str = ""
    clear: float = 1.0
    crash: str = ""
    far: bool = False

    @property
    def failed(self) -> bool:
        """Whether the package is wrong."""
        return bool(self.crash) or not (self.miss <= 1 or (self.far and self.error < np.inf))

    @property
    def words(self) -> str:
        """For people."""
        if self.crash:
            return self.crash
        return f"{self.error:.1e}, {self.miss:.1e} times what it may be, {self.where}"

    @property
    def unclear(self) -> bool:
        """Whether the case could not have shown it."""
        return self.clear < 0.5 or self.far


def check(case: Case, framework: str) -> Outcome:
    """Run a case in one framework and compare."""
    values = arrays.make(case)
    expected, spread, reference = expectation(case, values, framework)
    with exact((framework,)):
        if framework == "jax":
            from parity_tests.situations import in_jax as package
        else:
            from parity_tests.situations import in_torch as package
        try:
            actual, counts = package.run(case, values)
        except Exception as error:  # what a package refuses is a finding, too
            return Outcome(crash=f"{type(error).__name__}: {error}")
    far = any(reference.far) or reference.blurred
    left_out = [now - still for now, still in zip(_new(counts), reference.still, strict=True)]
    if any(left_out) and not far:
        where = ", ".join(sorted(set().union(*left_out)))
        return Outcome(np.inf, np.inf, f"no step of {where}")
    return replace(compared(case, values, actual, expected, spread, reference.moved), far=far)


def _new(counts: list[dict[str, int]]) -> list[set[str]]:
    """Of each step, the layers whose count has grown."""
    before = [dict.fromkeys(counts[0], 0), *counts]
    return [
        {layer for layer, count in now.items() if count > old[layer]}
        for old, now in zip(before, counts, strict=False)
    ]


def expectation(
    case: Case, values: Values, framework: str
) -> tuple[list[Params], list[Params], Reference]:
    """(The parameters after every step, by how much roundings change each entry, who says so)."""
    reference = Reference(case, values, framework, Exact())
    expected = reference.run()
    others = [
        Reference(case, values, framework, Roundings(seed, case.structure.dtype)).run()
        for seed in range(RUNS)
    ]
    spread = [
        {
            layer: {
                name: np.max([np.abs(o[step][layer][name] - value) for o in others], axis=0)
                for name, value in named.items()
            }
            for layer, named in params.items()
        }
        for step, params in enumerate(expected)
    ]
    return expected, spread, reference


def compared(
    case: Case,
    values: Values,
    actual: list[Params],
    expected: list[Params],
    spread: list[Params],
    moved: Params,
) -> Outcome:
    """The worst over all steps, parameters and slices."""
    gate, found = GATE[case.structure.dtype], []
    decays = any(case.weight_decays)
    for step, right in enumerate(expected):
        for layer, named in right.items():
            for name, value in named.items():
                start = values.params[layer][name].astype(np.float64)
                still = ~moved[layer][name] & (value == start)
                # A decay that nothing makes up for is a difference of two rounded steps.
                still &= (values.learning[layer][name] == 0) | (not decays)
                place = f"{layer}/{name} after step {step + 1}"
                pair = (actual[step][layer][name], value)
                roundings = spread[step][layer][name]
                slices = _slices(*pair, np.abs(value - start), still, roundings, gate)
                found += [(*each, place) for each in slices]
    ratios = [
        wrong / allowed if allowed else (np.inf if wrong else 0.0) for wrong, _, allowed, _ in found
    ]
    worst = int(np.argmax(ratios))
    seen = [(w / u, u) for w, u, a, _ in found if u and a <= UNCLEAR * u]
    changed = sum(u > 0 for _, u, _, _ in found)
    return Outcome(
        max((error for error, _ in seen), default=0.0),
        ratios[worst],
        found[worst][3],
        len(seen) / changed if changed else 1.0,
    )


def _slices(
    actual: np.ndarray,
    right: np.ndarray,
    change: np.ndarray,
    still: np.ndarray,
    spread: np.ndarray,
    gate: float,
) -> list[tuple[float, float, float]]:
    """(Error, the change, what the error may be) of each."""
    difference = np.abs(actual.astype(np.float64) - right)
    if not np.isfinite(actual).all() or np.any(difference[still]):
        return [(np.inf, 1.0, 0.0)]  # what does not learn does not move
    # Storing the result rounds it.
    stored = STORED * np.abs(right) * np.finfo(actual.dtype).eps * ~still
    found = []
    for axis in range(2) if right.ndim > 1 else (None,):
        matrix = (a.reshape(-1, a.shape[-1]) for a in (difference, change, spread, stored))
        wrong, unit, lost, rounding = (np.atleast_1d(a.max(axis=axis)) for a in matrix)
        allowed = gate * unit + FACTOR * lost + rounding
        found += zip(wrong.tolist(), unit.tolist(), allowed.tolist(), strict=True)
    return found
