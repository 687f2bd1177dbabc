"""Instance Enhancement Batch Normalization: each sample's mean weighs its normalized channels."""

from typing import Any, NamedTuple

import torch
from torch import nn

from torchnorm.normalizers.batch_stats import (
    CONVENTIONS,
    BatchStats,
    initial_batch_stats,
    normalized,
)
from torchnorm.normalizers.channels import (
    check_channels,
    check_choice,
    check_knob,
    computed,
    scaled,
    space_moments,
)
from torchnorm.normalizers.normalizer import Affine


def instance_enhancement_batch_norm(
    x: torch.Tensor,
    state: BatchStats,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    attention_weight: torch.Tensor,
    attention_bias: torch.Tensor,
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    convention: str = "flax",
) -> tuple[torch.Tensor, BatchStats]:
    """The function of `InstanceEnhancementBatchNorm`, which says what all of it means.

    Returns:
        y [N, C, *space] in the dtype of x, and the new state: the old one unless `training`.

    Raises:
        TypeError, ValueError: as the module.

    Example:
        >>> import torch
        >>> from torchnorm.normalizers import initial_batch_stats, instance_enhancement_batch_norm
        >>> x, attention = torch.tensor([[1.0], [3.0]]), (torch.zeros(1), torch.zeros(1))
        >>> y, state = instance_enhancement_batch_norm(
        ...     x, initial_batch_stats(1), None, None, *attention, training=True
        ... )
        >>> print(y.ravel(), state.mean)  # half of (-1, 1): sigmoid(0) = 1/2
        tensor([-0.5000,  0.5000]) tensor([0.2000])
    """
    check_channels(x, state.mean.shape[0])
    check_knob("momentum", momentum, 0, 1)
    check_knob("eps", eps, 0)
    check_choice("convention", convention, CONVENTIONS)
    given, x = x.dtype, computed(x)
    pooled, _, _ = space_moments(x)
    attention = torch.sigmoid(scaled(pooled, attention_weight, attention_bias))
    y, new = normalized(
        x, state, training=training, momentum=momentum, eps=eps, convention=convention
    )
    return scaled(y * attention, weight, bias).to(given), new


class InstanceEnhancementBatchNorm(Affine):
    """As `jaxnorm.linen.normalizers.InstanceEnhancementBatchNorm`, for x [N, C, *space].

    ::

        a = sigmoid(attention_weight * mean_space(x) + attention_bias)     [N, C]
        y = weight a (x - mean) / sqrt(var + eps) + bias

    Args:
        num_features: C.
        eps: added to the variance; default 1e-5.
        momentum: weight of the new statistics in the running ones, in [0, 1]; default 0.1. (In JAX
            that of the old, default 0.9: the same.)
        affine: whether there are weight and bias; default True. There always is an attention.
        convention: which variance runs along, as there. "torch" is `torch.nn.BatchNorm2d`'s, and
            the published code's.
        device: of parameters and buffers.
        dtype: of parameters and buffers. Statistics are computed in float32 at least; the output
            has the dtype of x.

    Parameters: weight, bias, attention_weight (0), attention_bias (-1), [C]. (In the published
    code the last two are weight_readjust and bias_readjust, and all are [1, C, 1, 1].)
    Buffers: running_mean, running_var, [C].

    Raises:
        TypeError, ValueError: as there.

    Transformations: as `BatchRenorm`.

    Example:
        >>> import torch, torchnorm
        >>> layer = torchnorm.normalizers.InstanceEnhancementBatchNorm(3)
        >>> y = layer(torch.randn(4, 3, 8, 8))
        >>> round(y.std().item(), 2)  # sigmoid(-1)
        0.27
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        *,
        convention: str = "flax",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, device, dtype)
        self.convention = convention
        self.attention_weight = nn.Parameter(torch.empty(num_features, device=device, dtype=dtype))
        self.attention_bias = nn.Parameter(torch.empty(num_features, device=device, dtype=dtype))
        self.make_stats(device, dtype)
        self.reset_parameters()

    def initial(self, device: Any, dtype: Any) -> tuple[NamedTuple, ...]:
        """The state before any step."""
        return (initial_batch_stats(self.num_features, device, dtype),)

    def reset_parameters(self) -> None:
        """The initial states and parameters."""
        super().reset_parameters()
        nn.init.zeros_(self.attention_weight)
        nn.init.constant_(self.attention_bias, -1.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the module to x [N, C, *space]."""
        y, new = instance_enhancement_batch_norm(
            x,
            self.read(BatchStats),
            self.weight,
            self.bias,
            self.attention_weight,
            self.attention_bias,
            training=self.training,
            momentum=self.momentum,
            eps=self.eps,
            convention=self.convention,
        )
        if self.training:
            self.write(new)
        return y

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{super().extra_repr()}, convention={self.convention!r}"
