"""What the modules with running statistics share: the arguments of PyTorch's BatchNorm."""

from typing import Any

import torch
from torch import nn


class RunningStatistics(nn.Module):
    """Base of the modules, not to be used by itself; the arguments are `nn.BatchNorm1d`'s."""

    def __init__(
        self,
        num_features: int,
        initial: Any,
        eps: float,
        momentum: float,
        affine: bool,
        bias: bool,
        device: Any,
        dtype: Any,
    ) -> None:
        super().__init__()
        self.num_features, self.eps, self.momentum, self.affine = (
            num_features,
            eps,
            momentum,
            affine,
        )
        self.kind = type(initial)
        if affine:
            self.weight = nn.Parameter(torch.ones(num_features, device=device, dtype=dtype))
        else:
            self.register_parameter("weight", None)
        if affine and bias:
            self.bias = nn.Parameter(torch.zeros(num_features, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        for name, value in zip(initial._fields, initial, strict=True):
            self.register_buffer(f"running_{name}", value)

    def running(self) -> Any:
        """The running statistics, a named tuple."""
        return self.kind(*(getattr(self, f"running_{name}") for name in self.kind._fields))

    def store(self, new: Any) -> None:
        """The new running statistics."""
        with torch.no_grad():
            for name, value in zip(self.kind._fields, new, strict=True):
                getattr(self, f"running_{name}").copy_(value)

    def extra_repr(self) -> str:
        """The arguments."""
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}"
        )
