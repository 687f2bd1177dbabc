"""Kernels that lie otherwise: transposed, flipped."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import torch.nn.functional as F

from parity_tests.port.causes.base import Case, Cause, Function, Hypothesis, only
from parity_tests.port.functions import CONVOLUTIONS, TRANSPOSED


class TransposedKernel(Cause):
    """Flax's kernel is [I, O], PyTorch's weight [O, I]; a square one fits either way."""

    name = "transposed kernel"
    mend = "transpose the kernel: Flax has [I, O] and [*window, I, O], PyTorch [O, I, *window]"

    def hypotheses(self, case: Case) -> Iterator[Hypothesis]:
        """Inputs and outputs exchanged; the window's axes exchanged."""
        functions = (F.linear, *CONVOLUTIONS, *TRANSPOSED)
        for call in case.calls(*functions)[:1]:
            rank = call.values["weight"].ndim
            for a, b in combinations(range(rank), 2):
                if (a < 2) != (b < 2):
                    continue  # a channel for a pixel
                what = "inputs and outputs" if b < 2 else f"axes {a - 2} and {b - 2} of the window"

                def change(function: Function, a: int = a, b: int = b) -> Any:
                    return function.again(weight=function.values["weight"].transpose(a, b))

                yield Hypothesis(f"Flax's kernel has {what} exchanged", only(functions, change))


class FlippedKernel(Cause):
    """A convolution or a correlation; a transposed convolution that is not reversed."""

    name = "flipped kernel"
    mend = "reverse the window: Flax's ConvTranspose without transpose_kernel needs it reversed"

    def hypotheses(self, case: Case) -> Iterator[Hypothesis]:
        """All axes of the window reversed, then some."""
        functions = (*CONVOLUTIONS, *TRANSPOSED)
        for call in case.calls(*functions)[:1]:
            window = range(2, call.values["weight"].ndim)
            for count in range(len(window), 0, -1):
                for axes in combinations(window, count):

                    def change(function: Function, axes: tuple[int, ...] = axes) -> Any:
                        return function.again(weight=function.values["weight"].flip(axes))

                    text = f"Flax's kernel is reversed along axes {[a - 2 for a in axes]}"
                    yield Hypothesis(f"{text} of the window", only(functions, change))
