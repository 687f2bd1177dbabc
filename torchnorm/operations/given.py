"""An operation that somebody gave: a function of the input and the weight."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from torchnorm.operations.linear import LinearOperation


@dataclass(frozen=True)
class Given(LinearOperation):
    """``z = function(x, weight)``.

    Attributes:
        function: the operation.
        shape: of the weight, [O, C / groups, *window].
    """

    function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = torch.nn.functional.linear
    shape: tuple[int, ...] = ()

    def kernel_grad(self, x: torch.Tensor, weight: torch.Tensor, g_z: torch.Tensor) -> torch.Tensor:
        """The function's own, whose shapes may be fixed: some channels or neurons are repeated."""
        neurons, inputs = self.shape[:2]
        axis, outputs = self.channel_axis(x), g_z.shape[self.channel_axis(g_z)]
        if x.shape[axis] != inputs * self.groups:
            x = x.repeat_interleave(inputs * self.groups // x.shape[axis], axis)
        if outputs != neurons:
            g_z = g_z.repeat_interleave(neurons // outputs, self.channel_axis(g_z))
        whole = weight.new_zeros(self.shape)
        gradient = _gradient(self.function, x, whole, g_z)
        return gradient[:: neurons // outputs, : weight.shape[1]]


def _gradient(function: Callable, x: torch.Tensor, weight: torch.Tensor, g_z: Any) -> torch.Tensor:
    """The gradient at the weight."""
    if torch.compiler.is_compiling():
        return torch.func.grad(lambda weight: (function(x, weight) * g_z).sum())(weight)
    with torch.enable_grad():
        weight = weight.detach().requires_grad_()
        z = function(x, weight)
        return torch.autograd.grad(z, weight, g_z.to(z.dtype))[0]
