"""Attentive Normalization: each sample mixes its own weight and bias out of several."""

import functools
import math
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from torchnorm.normalizers.batch_stats import (
    CONVENTIONS,
    BatchStats,
    initial_batch_stats,
    normalized,
)
from torchnorm.normalizers.channels import (
    along,
    check_channels,
    check_choice,
    check_count,
    check_knob,
    check_positions,
    computed,
    scaled,
    space_moments,
)
from torchnorm.normalizers.normalizer import Normalizer


def _hard_sigmoid(logits: torch.Tensor) -> torch.Tensor:
    # The derivative of `F.hardsigmoid` is a sixth in float32, for float64 too.
    return F.relu6(logits + 3) / 6


#: What makes weights of the mixtures out of the attention's BatchNorm.
ATTENTIONS = {
    "hard_sigmoid": _hard_sigmoid,
    "sigmoid": torch.sigmoid,
    "softmax": functools.partial(torch.softmax, dim=-1),
}

#: Added to the variance over space by which the pooled input is divided.
_POOLED_EPS = 1e-3


class AttentiveParams(NamedTuple):
    """The parameters of Attentive Normalization, of K mixtures.

    Attributes:
        weight: [K, C].
        bias: [K, C].
        projection: [K, C], the 1x1 convolution.
        attention_weight: [K], of the BatchNorm after it.
        attention_bias: [K], of the BatchNorm after it.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    projection: torch.Tensor
    attention_weight: torch.Tensor
    attention_bias: torch.Tensor


class AttentiveState(NamedTuple):
    """The running statistics of both BatchNorms.

    Attributes:
        mean: [C].
        var: [C].
        attention_mean: [K].
        attention_var: [K].
    """

    mean: torch.Tensor
    var: torch.Tensor
    attention_mean: torch.Tensor
    attention_var: torch.Tensor


def initial_attentive_state(
    channels: int, mixtures: int, device: Any = None, dtype: Any = None
) -> AttentiveState:
    """Means 0, variances 1."""
    return AttentiveState(
        *initial_batch_stats(channels, device, dtype),
        *initial_batch_stats(mixtures, device, dtype),
    )


def attentive_norm(
    x: torch.Tensor,
    state: AttentiveState,
    params: AttentiveParams,
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    attention: str = "hard_sigmoid",
    unbiased: bool = False,
    convention: str = "flax",
) -> tuple[torch.Tensor, AttentiveState]:
    """The function of `AttentiveNorm`, which says what all of it means.

    Returns:
        y [N, C, *space] in the dtype of x, and the new state: the old one unless `training`.

    Raises:
        TypeError, ValueError: as the module.

    Example:
        >>> import torch
        >>> from torchnorm.normalizers import (
        ...     AttentiveParams, attentive_norm, initial_attentive_state
        ... )
        >>> params = AttentiveParams(
        ...     torch.ones(5, 3), torch.zeros(5, 3), torch.ones(5, 3), torch.ones(5), torch.zeros(5)
        ... )
        >>> x = torch.randn(4, 3, 8, 8)
        >>> y, state = attentive_norm(x, initial_attentive_state(3, 5), params, training=True)
        >>> y.shape, state.attention_mean.shape
        (torch.Size([4, 3, 8, 8]), torch.Size([5]))
    """
    check_channels(x, state.mean.shape[0])
    check_knob("momentum", momentum, 0, 1)
    check_knob("eps", eps, 0)
    check_choice("attention", attention, tuple(ATTENTIONS))
    check_choice("convention", convention, CONVENTIONS)
    check_positions(x, unbiased=unbiased)
    given, x = x.dtype, computed(x)

    def batch_norm(x, mean, var):
        return normalized(
            x,
            BatchStats(mean, var),
            training=training,
            momentum=momentum,
            eps=eps,
            convention=convention,
        )

    # Products of the few pooled values: not in the lower precision of autocast.
    with torch.autocast(x.device.type, enabled=False):
        y, new = batch_norm(x, state.mean, state.var)
        pooled, var, _ = space_moments(x)
        if training:
            check_count(x, len(x), "sample")
        if unbiased:
            positions = math.prod(x.shape[2:])
            var = var * (positions / (positions - 1))
        pooled = (pooled * torch.rsqrt(var + _POOLED_EPS)).flatten(1)
        weight, bias, projection = (each.to(x.dtype) for each in params[:3])
        weights, new_attention = batch_norm(
            pooled @ projection.T, state.attention_mean, state.attention_var
        )
        logits = scaled(weights, params.attention_weight, params.attention_bias)
        weights = ATTENTIONS[attention](logits)
        y = y * along(weights @ weight, x) + along(weights @ bias, x)
    return y.to(given), AttentiveState(*new, *new_attention)


class AttentiveNorm(Normalizer):
    """As `jaxnorm.linen.normalizers.AttentiveNorm`, for x [N, C, *space].

    ::

        y      = (lambda @ weight) (x - mean) / sqrt(var + eps) + lambda @ bias
        lambda = hard_sigmoid(attention_weight z + attention_bias)    [N, K]
        z      = (pooled @ projection.T - m) / sqrt(v + eps)          the 1x1 convolution, BatchNorm
        pooled = mean_space(x) / sqrt(var_space(x) + 1e-3)            [N, C]

    Args:
        num_features: C.
        eps: added to the variances of both BatchNorms; default 1e-5.
        momentum: weight of the new statistics in the running ones, in [0, 1]; default 0.1. (In JAX
            that of the old, default 0.9: the same.)
        mixtures: K, default 10.
        attention: as there; "hard_sigmoid" is relu6(x + 3) / 6, `torch.nn.Hardsigmoid`.
        unbiased: as there.
        convention: as there.
        device: of parameters and buffers.
        dtype: of parameters and buffers. Statistics are computed in float32 at least; the output
            has the dtype of x.

    Parameters: weight [K, C], bias [K, C], projection [K, C], attention_weight [K], attention_bias
    [K]. (In the published code weight_, bias_, attention_weights.attention.0.weight [K, C, 1, 1],
    attention_weights.attention.1.weight and .bias.)
    Buffers: running_mean [C], running_var [C], running_attention_mean [K],
    running_attention_var [K].

    Raises:
        TypeError, ValueError: as there.

    Transformations: as `BatchRenorm`.

    Example:
        >>> import torch, torchnorm
        >>> layer = torchnorm.normalizers.AttentiveNorm(3, mixtures=5)
        >>> layer(torch.randn(4, 3, 8, 8)).shape, layer.weight.shape
        (torch.Size([4, 3, 8, 8]), torch.Size([5, 3]))
    """

    weight: torch.Tensor
    bias: torch.Tensor
    projection: torch.Tensor
    attention_weight: torch.Tensor
    attention_bias: torch.Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        *,
        mixtures: int = 10,
        attention: str = "hard_sigmoid",
        unbiased: bool = False,
        convention: str = "flax",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(num_features, eps, momentum)
        check_knob("mixtures", mixtures, 1)
        self.mixtures = mixtures
        self.attention = attention
        self.unbiased = unbiased
        self.convention = convention
        for name in AttentiveParams._fields:
            matrix = not name.startswith("attention")
            shape = (mixtures, num_features) if matrix else (mixtures,)
            setattr(self, name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self.make_stats(device, dtype)
        self.reset_parameters()

    def initial(self, device: Any, dtype: Any) -> tuple[NamedTuple, ...]:
        """The state before any step."""
        return (initial_attentive_state(self.num_features, self.mixtures, device, dtype),)

    def reset_parameters(self) -> None:
        """The initial states and parameters."""
        self.reset_running_stats()
        nn.init.normal_(self.weight, 1, 0.1)
        nn.init.normal_(self.bias, 0, 0.1)
        nn.init.normal_(self.projection, 0, self.num_features**-0.5)
        nn.init.ones_(self.attention_weight)
        nn.init.zeros_(self.attention_bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the module to x [N, C, *space]."""
        y, new = attentive_norm(
            x,
            self.read(AttentiveState),
            AttentiveParams(*(getattr(self, name) for name in AttentiveParams._fields)),
            training=self.training,
            momentum=self.momentum,
            eps=self.eps,
            attention=self.attention,
            unbiased=self.unbiased,
            convention=self.convention,
        )
        if self.training:
            self.write(new)
        return y

    def extra_repr(self) -> str:
        """The arguments."""
        return (
            f"{super().extra_repr()}, mixtures={self.mixtures}, attention={self.attention!r}, "
            f"unbiased={self.unbiased}, convention={self.convention!r}"
        )
