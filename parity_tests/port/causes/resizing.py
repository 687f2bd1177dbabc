"""Images that are made larger, and channels that are put together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch.nn.functional as F

from parity_tests.port.causes.base import Case, Cause, Function, Hypothesis, only
from parity_tests.port.functions import CONCATENATE


class Resizing(Cause):
    """How pixels are filled in: jax.image.resize never aligns corners, and smooths what shrinks."""

    name = "resizing"
    mend = "F.interpolate(mode='bilinear', align_corners=False) is jax.image.resize(x, s, 'linear')"

    def hypotheses(self, case: Case) -> Iterator[Hypothesis]:
        """All other modes."""
        for call in case.calls(F.interpolate)[:1]:
            mine = (call.values.get("mode", "nearest"), call.values.get("align_corners"))
            for mode in ("nearest", "nearest-exact", "bilinear", "bicubic", "linear", "trilinear"):
                for corners in (None,) if mode.startswith("nearest") else (False, True):
                    for antialias in (False, True):
                        if (mode, corners) == mine and not antialias:
                            continue

                        def change(
                            function: Function,
                            mode: str = mode,
                            corners: Any = corners,
                            antialias: bool = antialias,
                        ) -> Any:
                            values = function.values
                            return F.interpolate(
                                values["input"],
                                values.get("size"),
                                values.get("scale_factor"),
                                mode,
                                corners,
                                antialias=antialias,
                            )

                        text = f"PyTorch has mode={mine[0]!r} and align_corners={mine[1]}, Flax "
                        text += f"{mode!r} and {corners}{', smoothed' if antialias else ''}"
                        yield Hypothesis(text, only((F.interpolate,), change))


class ConcatenationOrder(Cause):
    """What is put together stands in another order."""

    name = "order of a concatenation"
    mend = "concatenate in the same order"

    def hypotheses(self, case: Case) -> Iterator[Hypothesis]:
        """The reverse."""
        if case.calls(*CONCATENATE):

            def change(function: Function) -> Any:
                return function.again(tensors=list(function.values["tensors"])[::-1])

            text = "Flax concatenates in the reverse order"
            yield Hypothesis(text, only(CONCATENATE, change))
