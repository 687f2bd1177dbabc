"""Switchable Normalization: learned mixtures of the means and variances of several norms."""

import math
from typing import Any, NamedTuple

import torch
from torch import nn

from torchnorm.normalizers.batch_stats import BatchStats, initial_batch_stats
from torchnorm.normalizers.channels import (
    along,
    averaged,
    centered_over,
    check_channels,
    check_choice,
    check_count,
    check_knob,
    check_positions,
    computed,
    count,
    scaled,
    space_moments,
)
from torchnorm.normalizers.normalizer import Affine

#: The norms whose statistics can be mixed, in the order of their weights.
STATISTICS = ("instance", "layer", "batch")


class _Part(NamedTuple):
    """The statistics of one norm: x without its mean is centered + off."""

    off: torch.Tensor
    var: torch.Tensor


def switchable_norm(
    x: torch.Tensor,
    state: BatchStats,
    mean_weight: torch.Tensor,
    var_weight: torch.Tensor,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    statistics: tuple[str, ...] = STATISTICS,
    unbiased: bool = False,
) -> tuple[torch.Tensor, BatchStats]:
    """The function of `SwitchableNorm`, which says what all of it means.

    Returns:
        y [N, C, *space] in the dtype of x, and the new state: the old one unless `training`.

    Raises:
        TypeError, ValueError: as the module.

    Example:
        >>> import torch
        >>> from torchnorm.normalizers import initial_batch_stats, switchable_norm
        >>> x, ones = torch.randn(4, 3, 8, 8), torch.ones(3)
        >>> y, state = switchable_norm(x, initial_batch_stats(3), ones, ones, training=True)
        >>> y.shape, state.var.shape
        (torch.Size([4, 3, 8, 8]), torch.Size([3]))
    """
    check_channels(x, state.mean.shape[0])
    check_statistics(x, statistics)
    check_knob("momentum", momentum, 0, 1)
    check_knob("eps", eps, 0)
    given, x = x.dtype, computed(x)
    mean, var, centered = space_moments(x)
    if unbiased and x.ndim > 2:
        check_positions(x, unbiased=True)
        positions = math.prod(x.shape[2:])
        var = var * (positions / (positions - 1))
    # Without space there is no variance in an instance to be unbiased: that of the others is.
    direct = unbiased and x.ndim == 2
    parts = {"instance": _Part(torch.zeros_like(mean), var)}
    if "layer" in statistics:
        _, parts["layer"] = _over(mean, var, 1, x.shape[1] if direct else None)
    if "batch" in statistics and training:
        values = count(x)
        check_count(x, values)
        center, parts["batch"] = _over(mean, var, 0, values if direct else None)
        state = BatchStats(
            averaged(state.mean, center, momentum),
            averaged(state.var, parts["batch"].var, momentum),
        )
    elif "batch" in statistics:
        parts["batch"] = _Part(mean - along(state.mean, x), along(state.var, x))
    chosen = [parts[name] for name in statistics]
    of_means = torch.softmax(mean_weight.to(x.dtype), 0)
    of_vars = torch.softmax(var_weight.to(x.dtype), 0)
    off: Any = sum(w * part.off for w, part in zip(of_means, chosen, strict=True))
    mixed: Any = sum(w * part.var for w, part in zip(of_vars, chosen, strict=True))
    y = (centered + off) * torch.rsqrt(mixed + eps)
    return scaled(y, weight, bias).to(given), state


def _over(
    mean: torch.Tensor, var: torch.Tensor, dim: int, values: int | None
) -> tuple[torch.Tensor, _Part]:
    """The mean and the norm over one more dimension of instances; unbiased for so many values."""
    center, off = centered_over(mean, (dim,))
    spread = (var + off.square()).mean(dim, keepdim=True)
    return center, _Part(off, spread if values is None else spread * (values / (values - 1)))


def check_statistics(x: torch.Tensor, statistics: tuple[str, ...]) -> None:
    """Raise a ValueError unless they are norms, each once, that x has."""
    for name in statistics:
        check_choice("statistics", name, STATISTICS)
    if not statistics or len(set(statistics)) != len(statistics):
        raise ValueError(f"statistics: got {statistics}, expected at least one name, each once")
    if "instance" in statistics and x.ndim < 3:
        raise ValueError(
            f"statistics: got 'instance' for x of shape {tuple(x.shape)}, expected an axis of "
            "space, because each value is its own mean; use statistics=('layer', 'batch')"
        )


class SwitchableNorm(Affine):
    """As `jaxnorm.linen.normalizers.SwitchableNorm`, for x [N, C, *space].

    ::

        y = weight (x - sum_k p_k mean_k) / sqrt(sum_k q_k var_k + eps) + bias
        p = softmax(mean_weight),  q = softmax(var_weight),  k in statistics

    Args:
        num_features: C.
        eps: added to the mixed variance; default 1e-5.
        momentum: weight of the new statistics in the running ones, in [0, 1]; default 0.1. (In JAX,
            and in the published code for PyTorch, that of the old, default 0.9: the same.)
        affine: whether there are weight and bias; default True.
        statistics: which norms, as there.
        unbiased: which variances, as there: False (default): the paper's; True: the published
            code's.
        device: of parameters and buffers.
        dtype: of parameters and buffers. Statistics are computed in float32 at least; the output
            has the dtype of x.

    Parameters: weight [C], bias [C], mean_weight [K], var_weight [K]. (In the published code the
    first two have axes of 1 around.) Buffers: running_mean [C], running_var [C], if "batch" is
    among the statistics.

    Raises:
        TypeError, ValueError: as there.

    Transformations: as `BatchRenorm`.

    Example:
        >>> import torch, torchnorm
        >>> layer = torchnorm.normalizers.SwitchableNorm(3, statistics=("instance", "layer"))
        >>> layer(torch.randn(1, 3, 8, 8)).shape, layer.mean_weight.shape
        (torch.Size([1, 3, 8, 8]), torch.Size([2]))
    """

    mean_weight: torch.Tensor
    var_weight: torch.Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        *,
        statistics: tuple[str, ...] = STATISTICS,
        unbiased: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, device, dtype)
        self.statistics = statistics
        self.unbiased = unbiased
        for name in ("mean_weight", "var_weight"):
            empty = torch.empty(len(statistics), device=device, dtype=dtype)
            self.register_parameter(name, nn.Parameter(empty))
        self.make_stats(device, dtype)
        self.reset_parameters()

    def initial(self, device: Any, dtype: Any) -> tuple[NamedTuple, ...]:
        """The state before any step, if there is one."""
        if "batch" not in self.statistics:
            return ()
        return (initial_batch_stats(self.num_features, device, dtype),)

    def reset_parameters(self) -> None:
        """The initial states and parameters: all norms alike."""
        super().reset_parameters()
        nn.init.ones_(self.mean_weight)
        nn.init.ones_(self.var_weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the module to x [N, C, *space]."""
        running = "batch" in self.statistics
        training = running and self.training
        state = self.read(BatchStats) if running else initial_batch_stats(self.num_features)
        y, new = switchable_norm(
            x,
            state,
            self.mean_weight,
            self.var_weight,
            self.weight,
            self.bias,
            training=training,
            momentum=self.momentum,
            eps=self.eps,
            statistics=self.statistics,
            unbiased=self.unbiased,
        )
        if training:
            self.write(new)
        return y

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{super().extra_repr()}, statistics={self.statistics}, unbiased={self.unbiased}"
