"""Running variance: PyTorch keeps the unbiased one, Flax the biased one."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode


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
        names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum")
        every = dict(zip(names, args, strict=False)) | kwargs
        variance, momentum = every.get("running_var"), every.get("momentum", 0.1)
        if not every.get("training", False) or variance is None:
            return func(*args, **kwargs)
        before = variance.detach().clone()
        result = func(*args, **kwargs)
        x = every["input"]
        n = x.numel() // x.shape[1]
        with torch.no_grad():
            old = (1 - momentum) * before
            variance.copy_(old + (variance - old) * ((n - 1) / n))
        return result
