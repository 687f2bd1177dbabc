"""Gradient centralization, for any optimizer of torch.optim."""

from collections.abc import Callable

import torch
from torch import nn

from torchnorm.optim.hooks import before_step
from torchnorm.optim.layers import layers_of, layout
from torchnorm.optim.refusals import check_optimizer


def centralize(
    optimizer: torch.optim.Optimizer, model: nn.Module | None = None
) -> torch.optim.Optimizer:
    """Gradient centralization (Yong et al.): subtract from each neuron's gradient its mean.

        g_W[o] <- g_W[o] - mean of g_W[o] over the inputs (and taps) of neuron o

    The gradients are replaced when `step` is called, before the optimizer sees them. No statistics,
    any model.

    Args:
        optimizer: of `torch.optim`.
        model: None, as published: every parameter of two axes or more that the optimizer learns has
            its neurons along the first axis, [O, I, *window]; embeddings too. With a model: only
            the weights of its dense and convolutional layers, transposed ones (and the Conv1D of
            transformers) in their own layout.

    Returns:
        The same optimizer; `torchnorm.optim.remove` takes it off again.

    Raises:
        TypeError: for another type of optimizer or model.
        ValueError: for an optimizer that runs another, is in neuron coordinates, or has none of the
            layers' weights.

    Dtypes: the mean is taken in at least float32; gradients keep theirs. Sparse ones stay.

    Example:
        >>> import torch, torchnorm
        >>> weight = torch.nn.Parameter(torch.zeros(2, 2))
        >>> optimizer = torchnorm.optim.centralize(torch.optim.SGD([weight], lr=1.0))
        >>> weight.grad = torch.tensor([[1.0, 3.0], [2.0, 8.0]])
        >>> optimizer.step()
        >>> weight.tolist()
        [[1.0, -1.0], [3.0, -3.0]]

    References:
        Yong, Huang, Hua, Zhang, ECCV 2020, arXiv 2004.01461.
    """
    check_optimizer(optimizer, "centralize")
    layers = {} if model is None else layers_of(optimizer, model)
    layouts = {id(layer.weight): layout(layer) for layer in layers.values()}

    def adapt(optimizer: torch.optim.Optimizer) -> None:
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            grad = parameter.grad
            if grad is None or grad.ndim < 2 or grad.layout != torch.strided:
                continue
            if model is None:
                parameter.grad = _centered(grad, lambda grad: grad)
            elif id(parameter) in layouts:
                parameter.grad = _centered(grad, layouts[id(parameter)])

    before_step(optimizer, "centralize", adapt)
    return optimizer


def _centered(grad: torch.Tensor, swap: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    wide = swap(grad).to(torch.promote_types(grad.dtype, torch.float32))
    wide = wide - wide.mean(tuple(range(1, wide.ndim)), keepdim=True)
    return swap(wide).to(grad.dtype).contiguous()
