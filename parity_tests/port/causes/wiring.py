"""What a layer reads or adds: a residual, another value, a factor. Known by numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from parity_tests.port.causes.base import Case, Cause, Hypothesis
from parity_tests.port.causes.values import arrivals, named_values
from parity_tests.port.measure import distance
from parity_tests.port.report import Finding


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
                if distance(sign * (theirs - ours), value).error < 1e-9:
                    return f"{has} adds {name}, {lacks} does not"
        return ""


class OtherValue(_ByNumbers):
    """Something else reaches the layer, or is returned."""

    name = "other value"
    mend = "hand on the same value: look at the order of the layers"

    def words(self, case: Case, theirs: np.ndarray, ours: np.ndarray) -> str:
        """One side's value is another one of the layer."""
        for side, array in (("Flax", ours), ("PyTorch", theirs)):
            for name, value in named_values(case):
                if value.shape == array.shape and distance(array, value).error < 1e-9:
                    other = "PyTorch" if side == "Flax" else "Flax"
                    return f"{side} hands on {name} itself, {other} something else"
        return ""


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
        if factor and distance(ours, factor * theirs).error < 1e-9:
            root = f", the root of {round(factor**2)}" if abs(factor**2 % 1) < 1e-6 else ""
            return f"Flax's numbers are {factor:.9g} times PyTorch's{root}"
        return ""
