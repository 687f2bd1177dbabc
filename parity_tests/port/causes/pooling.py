"""Pooling: what counts, and what is put around."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch.nn.functional as F

from parity_tests.port.causes.base import Case, Cause, Function, Hypothesis, only, with_values
from parity_tests.port.functions import AVERAGES, MAXIMA


class CountIncludePad(Cause):
    """Whether the zeros around an image count in the average."""

    name = "count_include_pad"
    mend = "count_include_pad= is True by default in both; give it"

    def hypotheses(self, case: Case) -> Iterator[Hypothesis]:
        """The other way."""
        for call in case.calls(*AVERAGES)[:1]:
            mine = bool(call.values.get("count_include_pad", True))
            text = f"count_include_pad is {mine} in PyTorch, {not mine} in Flax"
            yield Hypothesis(text, with_values(AVERAGES, count_include_pad=not mine))


class Pooling(Cause):
    """Another padding, or the largest in place of the mean."""

    name = "pooling"
    mend = (
        "nn.max_pool and nn.avg_pool with the same window, strides= and padding= (VALID by default)"
    )

    def hypotheses(self, case: Case) -> Iterator[Hypothesis]:
        """SAME, other numbers, the other kind."""
        pools = (*AVERAGES, *MAXIMA)
        for call in case.calls(*pools)[:1]:
            largest = call.function in MAXIMA
            mine = call.values.get("padding", 0)
            for before in range(3):
                for behind in range(3):
                    text = f"PyTorch pads by {mine}, Flax by {before} before and {behind} behind"
                    change = _padded(before, behind, float("-inf") if largest else 0.0)
                    name = "padding" if before != behind or before != mine else ""
                    yield Hypothesis(text, only(pools, change), name)
            words = ("the largest", "the mean") if largest else ("the mean", "the largest")
            text = f"PyTorch takes {words[0]}, Flax {words[1]}"
            yield Hypothesis(text, only(pools, _other(largest)))


def _padded(before: int, behind: int, value: float) -> Any:
    def change(function: Function) -> Any:
        x = function.values["input"]
        pads = [before, behind] * (x.ndim - 2)
        return function.again(input=F.pad(x, pads, value=value), padding=0)

    return change


def _other(largest: bool) -> Any:
    def change(function: Function) -> Any:
        values, x = function.values, function.values["input"]
        kind = "avg" if largest else "max"
        pool = getattr(F, f"{kind}_pool{x.ndim - 2}d")
        return pool(x, values["kernel_size"], values.get("stride"), values.get("padding", 0))

    return change
