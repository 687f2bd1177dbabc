"""The order in which an image is flattened."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from parity_tests.port.causes.base import Case, Cause, Function, Hypothesis, only
from parity_tests.port.functions import FLATTEN


class ChannelOrder(Cause):
    """PyTorch flattens channels first, Flax channels last; the dense layer behind has one order."""

    name = "channel order before a flatten"
    mend = (
        "transpose to [N, C, *space] before the flatten in Flax, or reorder the weights: "
        "flattened={path: (*space, channels)} here and in jaxnorm.from_torch"
    )

    def hypotheses(self, case: Case) -> Iterator[Hypothesis]:
        """Channels last."""
        shapes = {f.args[0].shape for f in case.calls(*FLATTEN) if f.args[0].ndim > 2}
        for shape in shapes:

            def change(function: Function, shape: Any = shape) -> Any:
                result, x = function.again(), function.args[0]
                if x.shape != shape or result.ndim >= x.ndim:
                    return result
                return torch.moveaxis(x, 1, -1).reshape(result.shape)

            text = f"PyTorch flattens {tuple(shape)} with its channels first, Flax with them last"
            yield Hypothesis(text, only(FLATTEN, change))

            def first(function: Function, shape: Any = shape) -> Any:
                result, x = function.again(), function.args[0]
                if x.shape != shape or result.ndim >= x.ndim:
                    return result
                return torch.moveaxis(x, -1, 1).reshape(result.shape)

            text = f"PyTorch flattens {tuple(shape)} with its channels last, Flax with them first"
            yield Hypothesis(text, only(FLATTEN, first))
