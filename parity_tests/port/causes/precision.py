"""A cast in the middle."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from parity_tests.port.causes.base import Case, Cause, Function, Hypothesis, only
from parity_tests.port.causes.values import arrivals
from parity_tests.port.report import Finding

_LOW = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
_CASTS = (Tensor.float, Tensor.half, Tensor.bfloat16, Tensor.to, Tensor.type)


class Dtype(Cause):
    """A layer computes in a smaller dtype than the model around it."""

    name = "dtype"
    mend = "leave dtype= away in Flax, or give both sides the same; or compare with dtype='float32'"

    def hypotheses(self, case: Case) -> Iterator[Hypothesis]:
        """Without PyTorch's casts; with a cast of what the layer reads."""
        casts = [f for f in case.calls(*_CASTS) if _lowers(f)]
        if casts:

            def stay(function: Function) -> Any:
                return function.args[0] if _lowers(function) else function.again()

            text = f"PyTorch casts ({casts[0].function.__name__}), Flax does not"
            yield Hypothesis(text, only(_CASTS, stay))

    def find(self, case: Case) -> Iterator[Finding]:
        """By rewriting, or Flax's own numbers, which are numbers of the smaller dtype."""
        found = list(super().find(case))
        yield from found
        if any(finding.confirmed for finding in found):
            return
        for name in ("bfloat16", "float16", "float32"):
            if name == case.setting.dtype:
                continue
            for theirs, ours in arrivals(case):
                for side, array, other in (("Flax", ours, theirs), ("PyTorch", theirs, ours)):
                    if _holds(array, name) and not _holds(other, name):
                        text = f"all numbers of {side} are numbers of {name}: it casts to it"
                        yield Finding(
                            self.name, True, text, self.mend, case.flax_path, case.torch_path
                        )
                        return
        told = case.fields.get("dtype")
        if told is not None and np.dtype(told).name != case.setting.dtype:
            text = f"Flax's layer has dtype={np.dtype(told).name}"
            yield Finding(self.name, False, text, self.mend, case.flax_path, case.torch_path)
            return
        size = max(
            c.check.distance.error
            for c in case.departing
            if c.check.name.startswith(("forward", "what"))
        )
        if case.setting.dtype == "float64" and size < 1e-5:
            text = f"an error of {size:.1e} is what a cast to float32 leaves"
            yield Finding(self.name, False, text, self.mend, case.flax_path, case.torch_path)


def _lowers(function: Function) -> bool:
    if function.function in (Tensor.float, Tensor.half, Tensor.bfloat16):
        return function.args[0].dtype.is_floating_point
    values = [*function.args[1:], *function.kwargs.values()]
    return function.args[0].is_floating_point() and any(v in _LOW.values() for v in values)


def _holds(array: np.ndarray, name: str) -> bool:
    """Whether a dtype holds all these numbers exactly."""
    if array.dtype.name == name:
        return True
    if np.unique(array).size < min(8, array.size):
        return False  # zeros and ones are numbers of every dtype
    tensor = torch.tensor(array.astype(np.float64))
    return bool(torch.equal(tensor.to(_LOW[name]).to(tensor.dtype), tensor))
