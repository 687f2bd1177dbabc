"""Running variance: PyTorch keeps the unbiased one, Flax the biased one."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from parity_tests.port.functions import names_of


class BiasedVariance(TorchFunctionMode):
    """Makes PyTorch's batch normalization keep the biased variance, as Flax does."""

    text = (
        "PyTorch keeps the unbiased running variance (a factor N / (N - 1), N entries a channel), "
        "Flax the biased one"
    )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is not torch.nn.functional.batch_norm:
            return func(*args, **kwargs)
        values = dict(zip(names_of(func), args, strict=False)) | kwargs
        return _keep_biased(lambda: func(*args, **kwargs), values)


def with_biased_variance(function: Any, **new: Any) -> Any:
    """Call `F.batch_norm`, with some arguments replaced, and keep the biased variance."""
    return _keep_biased(lambda: function.again(**new), function.values | new)


def _keep_biased(call: Any, values: dict[str, Any]) -> Any:
    variance, momentum = values.get("running_var"), values.get("momentum", 0.1)
    if not values.get("training", False) or variance is None:
        return call()
    before = variance.detach().clone()
    result = call()
    x = values["input"]
    n = x.numel() // x.shape[1]
    with torch.no_grad():
        old = (1 - momentum) * before
        # Of the same tensor: what autograd holds of it is not touched.
        variance.data.copy_(old + (variance - old) * ((n - 1) / n))
    return result
