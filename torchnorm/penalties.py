"""Penalties on what a layer puts out: a term of the loss, or a layer that adds its gradient."""

from typing import Any

import torch
from torch import nn

from torchnorm.checks import check_floating
from torchnorm.normalizers.refusals import check_choice, check_knob

#: How the entries of an output are put together.
REDUCTIONS = ("sum", "mean", "batch_mean")


def l1_penalty(x: torch.Tensor, weight: float = 1.0, reduction: str = "mean") -> torch.Tensor:
    """``weight`` times the absolute values of an output, a term for the loss.

    As `jaxnorm.penalties.l1_penalty`.

        penalty = weight R |x_i|,    gradient = weight R' sign(x_i)        (0 at 0)

    Args:
        x: the output of a layer, of any shape; floating.
        weight: of the penalty, >= 0, default 1; in units of the loss per unit of x.
        reduction: R: "mean" of all entries (default), "sum" of all, or "batch_mean", the sum over
            all axes but the first and the mean over that.

    Returns:
        A number, in at least float32, in which the sum is taken.

    Raises:
        TypeError: for an x that is not floating, a weight that is no number.
        ValueError: for a negative weight, another reduction.

    Example:
        >>> import torch, torchnorm
        >>> x = torch.tensor([[1.0, -2.0], [0.0, 5.0]])
        >>> float(torchnorm.penalties.l1_penalty(x, 0.5))
        1.0
        >>> float(torchnorm.penalties.l2_penalty(x, 0.5))
        3.75
    """
    _check(x, reduction, weight=weight)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return weight * _share(x, reduction) * wide.abs().sum()


def l2_penalty(x: torch.Tensor, weight: float = 1.0, reduction: str = "mean") -> torch.Tensor:
    """``weight`` times the squares of an output, a term for the loss; as `l1_penalty`.

        penalty = weight R x_i^2,    gradient = 2 weight R' x_i

    Without a factor of one half.

    Args:
        x: as in `l1_penalty`.
        weight: as in `l1_penalty`, in units of the loss per squared unit of x.
        reduction: as in `l1_penalty`.

    Returns:
        A number, in at least float32.

    Raises:
        TypeError: as `l1_penalty`.
        ValueError: as `l1_penalty`.

    Example:
        >>> import torch, torchnorm
        >>> x = torch.tensor([3.0, -1.0], requires_grad=True)
        >>> torchnorm.penalties.l2_penalty(x).backward()
        >>> x.grad.tolist()
        [3.0, -1.0]
    """
    _check(x, reduction, weight=weight)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return weight * _share(x, reduction) * wide.square().sum()


def penalize(
    x: torch.Tensor, l1: float = 0.0, l2: float = 0.0, reduction: str = "mean"
) -> torch.Tensor:
    """The identity, whose backward pass adds the gradient of the penalties.

    As `jaxnorm.penalties.penalize`, which has the whole text.

        forward:  y = x
        backward: g_x = g_y + l1 R' sign(x) + 2 l2 R' x

    Args:
        x: the output of a layer, of any shape; floating.
        l1: weight of the absolute values, >= 0, default 0.
        l2: weight of the squares, >= 0, default 0.
        reduction: as in `l1_penalty`.

    Returns:
        A view of x.

    Raises:
        TypeError: for an x that is not floating, a weight that is no number.
        ValueError: for a negative weight, another reduction.

    Transformations: `torch.func.grad` and vmap, where R is over one example. No forward mode.

    Example:
        >>> import torch, torchnorm
        >>> x = torch.tensor([3.0, -1.0], requires_grad=True)
        >>> torchnorm.penalties.penalize(x, l1=2.0, l2=1.0).sum().backward()
        >>> x.grad.tolist()
        [5.0, -1.0]
    """
    _check(x, reduction, l1=l1, l2=l2)
    return _Identity.apply(x, l1, l2, _share(x, reduction))  # pyright: ignore[reportReturnType]


class OutputPenalty(nn.Module):
    """`penalize` as a module, for `nn.Sequential`.

    Args:
        l1: weight of the absolute values, >= 0, default 0.
        l2: weight of the squares, >= 0, default 0.
        reduction: as in `l1_penalty`.

    Raises:
        TypeError: for an x that is not floating, a weight that is no number.
        ValueError: for a negative weight, another reduction.

    Example:
        >>> import torch, torchnorm
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(3, 2), torch.nn.ReLU(), torchnorm.penalties.OutputPenalty(l1=1e-3))
        >>> model[2]
        OutputPenalty(l1=0.001, l2=0.0, reduction='mean')
    """

    def __init__(self, l1: float = 0.0, l2: float = 0.0, reduction: str = "mean") -> None:
        super().__init__()
        _check(torch.empty(0), reduction, l1=l1, l2=l2)
        self.l1, self.l2, self.reduction = l1, l2, reduction

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As it is."""
        return penalize(x, self.l1, self.l2, self.reduction)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"l1={self.l1}, l2={self.l2}, reduction={self.reduction!r}"


class _Identity(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor, l1: float, l2: float, share: float) -> torch.Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, ctx.l1, ctx.l2, ctx.share = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (x,), (g,) = ctx.saved_tensors, grad_outputs
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        added = ctx.share * (ctx.l1 * torch.sign(wide) + 2 * ctx.l2 * wide)
        return (g.to(wide.dtype) + added).to(x.dtype), None, None, None


def _check(x: torch.Tensor, reduction: str, **weights: float) -> None:
    check_floating(x=x)
    check_choice("reduction", reduction, REDUCTIONS)
    for name, weight in weights.items():
        check_knob(name, weight, "a number >= 0", lambda value: value >= 0)


def _share(x: torch.Tensor, reduction: str) -> float:
    """What the reduction divides a sum by, inverted."""
    count = {"sum": 1, "mean": x.numel(), "batch_mean": x.shape[0] if x.ndim else 1}[reduction]
    return 1 / max(count, 1)
