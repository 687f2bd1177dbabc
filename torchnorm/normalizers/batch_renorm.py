"""Batch Renormalization: batch statistics, corrected towards the running ones."""

from collections.abc import Callable
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from torchnorm.normalizers.channels import (
    along,
    averaged,
    check_input,
    computed,
    count,
    moments,
    scaled,
)
from torchnorm.normalizers.checks import NOT_NEGATIVE, POSITIVE, SHARE, check_knob, check_values
from torchnorm.normalizers.normalizer import Affine

#: Steps so far -> (r_max, d_max).
Limits = Callable[[Any], tuple[Any, Any]]


class RenormState(NamedTuple):
    """The running statistics of Batch Renormalization.

    Attributes:
        mean: [C], of the means of the batches.
        std: [C], of their standard deviations, eps included.
        steps: scalar, the training steps so far.
    """

    mean: torch.Tensor
    std: torch.Tensor
    steps: torch.Tensor


def initial_renorm_state(channels: int, device: Any = None, dtype: Any = None) -> RenormState:
    """Mean 0, standard deviation 1, no steps."""
    to = {"device": device, "dtype": dtype}
    steps = torch.zeros((), device=device, dtype=torch.long)
    return RenormState(torch.zeros(channels, **to), torch.ones(channels, **to), steps)


def published_limits(steps: Any) -> tuple[Any, Any]:
    """(r_max, d_max) after so many steps.

    BatchNorm, (1, 0), in the first 5000, then linear to r_max = 3 at 40000 and d_max = 5 at 25000.
    """
    if not isinstance(steps, torch.Tensor):  # else it would move to the default device
        steps = torch.as_tensor(steps)
    r_max = (2 * (steps / 35000) + 25 / 35).clamp(1.0, 3.0)
    return r_max, (5 * (steps / 20000) - 25 / 20).clamp(0.0, 5.0)


def batch_renorm(
    x: torch.Tensor,
    state: RenormState,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    training: bool,
    momentum: float = 0.01,
    eps: float = 1e-3,
    limits: Limits = published_limits,
    schedule_scale: float = 1.0,
) -> tuple[torch.Tensor, RenormState]:
    """The function of `BatchRenorm`, which says what all of it means.

    Returns:
        y [N, C, *space] in the dtype of x, and the new state: the old one unless `training`.

    Raises:
        TypeError, ValueError: as the module.

    Example:
        >>> import torch
        >>> from torchnorm.normalizers import batch_renorm, initial_renorm_state
        >>> y, state = batch_renorm(torch.eye(2) + 7, initial_renorm_state(2), training=True)
        >>> print(y, state.mean, state.steps)
        tensor([[ 0.9980, -0.9980],
                [-0.9980,  0.9980]]) tensor([0.0750, 0.0750]) tensor(1)
    """
    check_input(x, state.mean.shape[0])
    check_knob("momentum", momentum, SHARE)
    check_knob("eps", eps, NOT_NEGATIVE)
    check_knob("schedule_scale", schedule_scale, POSITIVE)
    given, x = x.dtype, computed(x)
    mean, std = along(state.mean, x), along(state.std, x)
    if not training:
        return scaled((x - mean) / std, weight, bias).to(given), state
    check_values(x.shape, count(x))
    mean_of_batch, var, centered = moments(x)
    std_of_batch = _root(var) + eps
    r_max, d_max = limits(state.steps.to(x.dtype) / schedule_scale)
    with torch.no_grad():
        r = _clipped(std_of_batch / std, 1 / r_max, r_max)
        d = _clipped((mean_of_batch - mean) / std, -d_max, d_max)
    new = RenormState(
        averaged(state.mean, mean_of_batch, momentum),
        averaged(state.std, std_of_batch, momentum),
        state.steps + 1,
    )
    return scaled(centered / std_of_batch * r + d, weight, bias).to(given), new


def _clipped(values: torch.Tensor, low: Any, high: Any) -> torch.Tensor:
    """Between two tensors, or two numbers."""
    low, high = (torch.as_tensor(each, device=values.device) for each in (low, high))
    return values.clamp(low.to(values.dtype), high.to(values.dtype))


def _root(var: torch.Tensor) -> torch.Tensor:
    """The square root, whose derivative at 0 (a constant channel) is taken as 0."""
    positive = var > 0
    return torch.where(positive, torch.sqrt(torch.where(positive, var, 1)), 0)


class BatchRenorm(Affine):
    """As `jaxnorm.linen.normalizers.BatchRenorm`, for x [N, C, *space]: Batch Renormalization.

    ::

        training  y = weight ((x - mean_B) / std_B r + d) + bias    std_B = sqrt(var_B) + eps
                  r = clip(std_B / std, 1 / r_max, r_max)            without gradient
                  d = clip((mean_B - mean) / std, -d_max, d_max)     without gradient
                  mean, std <- (1 - momentum) (mean, std) + momentum (mean_B, std_B)
                  steps <- steps + 1
        eval      y = weight (x - mean) / std + bias

    Args:
        num_features: C.
        eps: added to the standard deviation, in its units; default 1e-3.
        momentum: weight of the new statistics in the running ones, in [0, 1]; default 0.01. (In
            JAX that of the old, default 0.99: the same.)
        affine: whether there are weight and bias; default True.
        limits: steps -> (r_max >= 1, d_max >= 0), as there.
        schedule_scale: default 1, as there.
        device: of parameters and buffers.
        dtype: of parameters and buffers. Statistics are computed in float32 at least; the output
            has the dtype of x.

    Buffers: running_mean [C], running_std [C], num_batches_tracked (steps).

    Raises:
        TypeError, ValueError: as there.

    Transformations: autograd of any order, torch.compile, autocast, `torch.func` in evaluation.
    Statistics are those of a process: there is no synchronized form.

    Example:
        >>> import torch, torchnorm
        >>> layer = torchnorm.normalizers.BatchRenorm(3, schedule_scale=0.1)
        >>> y = layer(torch.randn(4, 3, 8, 8))
        >>> layer
        BatchRenorm(3, eps=0.001, momentum=0.01, affine=True, schedule_scale=0.1)
        >>> layer.num_batches_tracked
        tensor(1)
    """

    running_mean: torch.Tensor
    running_std: torch.Tensor

    buffer_names = MappingProxyType({"steps": "num_batches_tracked"})

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-3,
        momentum: float = 0.01,
        affine: bool = True,
        *,
        limits: Limits = published_limits,
        schedule_scale: float = 1.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, device, dtype)
        self.limits = limits
        self.schedule_scale = schedule_scale
        self.make_stats(device, dtype)
        self.reset_parameters()

    def initial(self, device: Any, dtype: Any) -> tuple[NamedTuple, ...]:
        """The state before any step."""
        return (initial_renorm_state(self.num_features, device, dtype),)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the module to x [N, C, *space]."""
        y, new = batch_renorm(
            x,
            self.read(RenormState),
            self.weight,
            self.bias,
            training=self.training,
            momentum=self.momentum,
            eps=self.eps,
            limits=self.limits,
            schedule_scale=self.schedule_scale,
        )
        if self.training:
            self.write(new)
        return y

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{super().extra_repr()}, schedule_scale={self.schedule_scale}"
