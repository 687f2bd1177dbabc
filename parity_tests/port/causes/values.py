"""What was computed in a layer on the two sides, for causes that are known by numbers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from parity_tests.port.causes.base import Case


def arrivals(case: Case) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(PyTorch's, Flax's) of all that departs forward in a layer, in PyTorch's layout."""
    calls = [{call.key: call for call in run.calls} for run in case.walk.runs]
    for each in case.departing:
        if not each.check.name.startswith(("forward", "what")):
            continue
        step = case.walk.steps[each.step]
        part = "arguments" if each.check.name.startswith("what") else "results"
        for slot in getattr(step, part):
            ours = getattr(calls[0][step.flax.key], part)[slot.flax[0]]
            theirs = getattr(calls[1][step.torch.key], part)[slot.torch[0]]
            ours, theirs = slot.alignment.to_torch(_wide(ours)), _wide(theirs)
            if ours.shape == theirs.shape and not np.array_equal(ours, theirs):
                yield theirs, ours


def _wide(array: np.ndarray) -> np.ndarray:
    """In a dtype that both NumPy and PyTorch have: bfloat16 is none."""
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def named_values(case: Case) -> Iterator[tuple[str, np.ndarray]]:
    """What the layer reads and what the layers within it return, in PyTorch's layout.

    They are the reference's, and the same on both sides. What reaches a layer and departs is not
    among them.
    """
    reached = {c.step for c in case.departing if c.arrival and c.check.name.startswith("what")}
    given = case.walk.given[1]
    for n, step in enumerate(case.walk.steps):
        inner = n != case.number and step.torch.parent is not None
        inside = inner and _within(case, n)
        each = given.get(step.torch.key)
        if each is None:
            continue
        if n == case.number:
            for k, value in each.arguments.items():
                yield f"input {k} of the layer", value
        elif inside:
            for value in each.results.values():
                yield f"the output of {step.torch.key[0]}", value
            for value in () if n in reached else each.arguments.values():
                yield f"the input of {step.torch.key[0]}", value


def _within(case: Case, number: int) -> bool:
    from parity_tests.port.walk import parent

    return parent(case.walk, number) == case.number


def values_within(case: Case, size: int) -> Iterator[np.ndarray]:
    """Those of this many entries."""
    for _, value in named_values(case):
        if value.size == size:
            yield value
