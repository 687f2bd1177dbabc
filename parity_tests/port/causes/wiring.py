"""What a layer reads or adds: a residual, another value, a factor. Known by numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch

from parity_tests.port.causes.base import Case, Cause, Function, Hypothesis, only
from parity_tests.port.causes.values import arrivals, named_values
from parity_tests.port.functions import SUMS
from parity_tests.port.measure import distance
from parity_tests.port.report import Finding

#: Of so many sums of a layer each is tried.
SUMS_TRIED = 4


class _ByNumbers(Cause):
    """A cause that is known by the numbers of both sides; all that departs must show it."""

    def hypotheses(self, case: Case) -> Iterable[Hypothesis]:
        """None: nothing is rewritten."""
        return ()

    def words(self, case: Case, theirs: np.ndarray, ours: np.ndarray) -> str:
        """What the numbers show, or nothing."""
        raise NotImplementedError

    def find(self, case: Case) -> Iterator[Finding]:
        """The first that departs shows it."""
        for theirs, ours in arrivals(case):
            text = self.words(case, theirs, ours)
            if text:
                yield Finding(self.name, True, text, self.mend, case.flax_path, case.torch_path)
            return


class Residual(_ByNumbers):
    """One side adds what it has read before, the other does not."""

    name = "residual missing"
    mend = "add it on both sides"

    def words(self, case: Case, theirs: np.ndarray, ours: np.ndarray) -> str:
        """The difference is a value of the layer."""
        for name, value in named_values(case):
            if value.size != ours.size or not np.any(value):
                continue
            value = value.reshape(ours.shape)
            for sign, has, lacks in ((1, "PyTorch", "Flax"), (-1, "Flax", "PyTorch")):
                if distance(sign * (theirs - ours), value).error < case.same:
                    return f"{has} adds {name}, {lacks} does not"
        return ""


class NotAdded(Cause):
    """PyTorch adds one value to another, Flax hands on one of the two."""

    name = "residual missing"
    mend = "add it on both sides"

    def hypotheses(self, case: Case) -> Iterator[Hypothesis]:
        """Either of the two."""
        for call in case.calls(*SUMS)[:SUMS_TRIED]:
            shape = getattr(call.values.get("other"), "shape", None)
            if shape != call.args[0].shape:
                continue
            for place, which in enumerate(("the first", "the second")):

                def hand_on(function: Function, place: int = place, shape: Any = shape) -> Any:
                    both = (function.args[0], function.values.get("other"))
                    alike = isinstance(both[1], torch.Tensor) and both[1].shape == shape
                    return both[place] if alike else function.again()

                text = f"PyTorch adds two values, Flax hands on {which} of them alone"
                yield Hypothesis(text, only(SUMS, hand_on))


class ConstantFactor(_ByNumbers):
    """The two are multiples of each other."""

    name = "constant factor"
    mend = "multiply on both sides: an embedding by the root of its width, say"

    def words(self, case: Case, theirs: np.ndarray, ours: np.ndarray) -> str:
        """The ratio is one number."""
        square = float(np.sum(theirs * theirs))
        if not square:
            return ""
        factor = float(np.sum(theirs * ours)) / square
        if factor and distance(ours, factor * theirs).error < case.same:
            whole = round(factor**2)
            root = f", the root of {whole}" if abs(factor**2 - whole) < 1e-6 * whole else ""
            return f"Flax's numbers are {factor:.9g} times PyTorch's{root}"
        return ""


class OtherValue(_ByNumbers):
    """Another value of the layer reaches the next one, or an operation is on one side only."""

    name = "other value"
    mend = "hand on the same value: look at the order of the layers"

    def find(self, case: Case) -> Iterator[Finding]:
        """Confirmed if both sides hand on values that are seen."""
        for theirs, ours in arrivals(case):
            mine, other = self._name(case, theirs), self._name(case, ours)
            paths = (case.flax_path, case.torch_path)
            if mine and other and mine != other:
                text = f"PyTorch hands on {mine}, Flax {other}"
                yield Finding(self.name, True, text, self.mend, *paths)
            elif mine or other:
                first, second = ("PyTorch", "Flax") if mine else ("Flax", "PyTorch")
                text = f"{first} hands on {mine or other} as it is, {second} computes something"
                name = "operation on one side"
                yield Finding(name, False, text, "do the same on both sides", *paths)
            return

    def _name(self, case: Case, array: np.ndarray) -> str:
        for name, value in named_values(case):
            if value.shape == array.shape and distance(array, value).error < case.same:
                return name
        return ""
