"""Sums over processes that a gradient flows through."""

from typing import Any

import torch
import torch.distributed as dist


class _AllReduce(torch.autograd.Function):
    """The sum; every process' gradient of it is the sum of all their gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, group: Any) -> torch.Tensor:
        ctx.group = group
        total = tensor.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return _AllReduce.apply(gradients[0].contiguous(), ctx.group), None


def all_reduce(tensor: torch.Tensor, group: Any) -> torch.Tensor:
    """The sum of a tensor over the processes of a group. `group` None: the tensor itself."""
    return tensor if group is None else _AllReduce.apply(tensor, group)  # pyright: ignore
