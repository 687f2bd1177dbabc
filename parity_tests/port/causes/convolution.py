"""Convolutions: what is put around the input, and the steps within the window."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch.nn.functional as F

from parity_tests.port.causes.base import Case, Cause, Function, Hypothesis, only, with_values
from parity_tests.port.functions import CONVOLUTIONS, TRANSPOSED


class Padding(Cause):
    """SAME of XLA puts more behind than before where a stride is 2; PyTorch as much on both."""

    name = "padding"
    mend = "give Flax numbers, padding=((1, 1), (1, 1)), or PyTorch F.pad and padding=0"

    def hypotheses(self, case: Case) -> Iterator[Hypothesis]:
        """SAME, none, and other numbers; wrapped or reflected."""
        modes = {f.values.get("mode", "constant") for f in case.calls(F.pad)} - {"constant"}
        for mode in modes:
            text = f"PyTorch pads in the mode {mode}, Flax with zeros"
            yield Hypothesis(text, with_values((F.pad,), mode="constant"))
        for call in case.calls(*CONVOLUTIONS)[:1]:
            mine = call.values.get("padding", 0)
            rank = call.values["weight"].ndim - 2
            kinds: list[tuple[str, Any]] = [("SAME", "SAME"), ("VALID", 0)]
            kinds += [(str(n), n) for n in range(1, 5)]
            kinds += [(f"({a}, {b}) before and behind", (a, b)) for a in range(4) for b in range(4)]
            for name, kind in kinds:
                text = f"PyTorch pads by {mine}, Flax by {name}"
                yield Hypothesis(text, only(CONVOLUTIONS, _padded(kind, rank, "constant")))
            for mode in ("circular", "reflect", "replicate"):
                text = f"PyTorch pads with zeros, Flax in the mode {mode}"
                yield Hypothesis(text, only(CONVOLUTIONS, _padded("SAME", rank, mode)))
        for call in case.calls(*TRANSPOSED)[:1]:
            mine = call.values.get("padding", 0)
            for cut in range(4):
                for more in range(-3, 4):
                    text = (
                        f"PyTorch cuts {mine} off both ends, Flax {cut} before, {cut - more} behind"
                    )
                    yield Hypothesis(text, only(TRANSPOSED, _cut(cut, cut - more)))


def _padded(kind: Any, rank: int, mode: str) -> Any:
    def change(function: Function) -> Any:
        values, x = function.values, function.values["input"]
        strides, dilations = (_each(values.get(name, 1), rank) for name in ("stride", "dilation"))
        pads: list[int] = []
        sizes = zip(x.shape[2:], values["weight"].shape[2:], strides, dilations, strict=True)
        for size, window, stride, dilation in sizes:
            if kind == "SAME":
                reach = dilation * (window - 1) + 1
                total = max((-(-size // stride) - 1) * stride + reach - size, 0)
                pads = [total // 2, total - total // 2, *pads]
            else:
                pads = [*(kind if isinstance(kind, tuple) else (kind, kind)), *pads]
        return function.again(input=F.pad(x, pads, mode), padding=0)

    return change


def _cut(before: int, behind: int) -> Any:
    def change(function: Function) -> Any:
        whole = function.again(padding=0, output_padding=0)
        for axis in range(2, whole.ndim):
            end = whole.shape[axis] - behind
            if end > whole.shape[axis]:
                pad = [0, 0] * (whole.ndim - 1 - axis) + [0, end - whole.shape[axis]]
                whole = F.pad(whole, pad)
            whole = whole.narrow(axis, before, end - before)
        return whole

    return change


def _each(value: Any, rank: int) -> tuple[int, ...]:
    return (value,) * rank if isinstance(value, int) else tuple(value) * (rank // len(value))


class Dilation(Cause):
    """The steps between the entries of the window."""

    name = "dilation"
    mend = "kernel_dilation= in Flax is dilation= in PyTorch"

    def hypotheses(self, case: Case) -> Iterator[Hypothesis]:
        """Others, with the padding that leaves the size as it is."""
        for call in case.calls(*CONVOLUTIONS)[:1]:
            window = call.values["weight"].shape[2:]
            mine = call.values.get("dilation", 1)
            for new in (1, 2, 3, 4):
                pads = tuple(new * (k - 1) // 2 for k in window)
                for padding in (call.values.get("padding", 0), pads):
                    text = f"PyTorch's dilation is {mine}, Flax's {new}"
                    change = with_values(CONVOLUTIONS, dilation=new, padding=padding)
                    yield Hypothesis(text, change)
