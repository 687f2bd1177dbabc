"""What normalizers of channels share: moments of x [N, C, *space], running averages, checks."""

import math
from typing import Any

import torch

from torchnorm import checks


def computed(x: torch.Tensor) -> torch.Tensor:
    """The same in the dtype in which its statistics are computed: float32 or wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def along(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Values [..., C] as they stand beside x [N, C, *space]."""
    return values.to(x.dtype).reshape(*values.shape, *(1,) * (x.ndim - 2))


def moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean and variance (biased), [1, C, 1...], of each channel, and x without the mean."""
    dims = (0, *range(2, x.ndim))
    mean, centered = centered_over(x, dims)
    return mean, centered.square().mean(dims, keepdim=True), centered


def space_moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean and variance (biased), [N, C, 1...], of each sample's channels, and x without the mean.

    Without space the mean is x and the variance 0.
    """
    dims = tuple(range(2, x.ndim))
    if not dims:  # which PyTorch takes for all
        return x, torch.zeros_like(x), torch.zeros_like(x)
    mean, centered = centered_over(x, dims)
    return mean, centered.square().mean(dims, keepdim=True), centered


def centered_over(x: torch.Tensor, dims: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean over dimensions, which stay, and x without it.

    The first value stands in for the mean at first: so nothing of x is lost in a large mean, and
    what is constant is 0.
    """
    first = x[tuple(slice(0, 1) if dim in dims else slice(None) for dim in range(x.ndim))]
    shift = first.detach()
    x = x - shift
    mean = x.mean(dims, keepdim=True)
    return shift + mean, x - mean


def count(x: torch.Tensor) -> int:
    """The values of each channel of x [N, C, *space]."""
    return x.shape[0] * math.prod(x.shape[2:])


def averaged(old: torch.Tensor, new: torch.Tensor, momentum: float) -> torch.Tensor:
    """The running average [C], in which `momentum` is the weight of the new; no gradient."""
    return ((1 - momentum) * old + momentum * new.reshape(old.shape)).detach()


def scaled(y: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None) -> torch.Tensor:
    """The product with the weight plus the bias, of those that there are."""
    y = y if weight is None else y * along(weight, y)
    return y if bias is None else y + along(bias, y)


def check_channels(x: torch.Tensor, channels: int) -> None:
    """Raise an error unless x is floating-point, a batch, and has the channels in dimension 1."""
    checks.check_floating(x=x)
    shape = tuple(x.shape)
    if len(shape) < 2:
        raise ValueError(
            f"x: got shape {shape}, expected at least 2 axes, a batch, channels; add the one that "
            "is missing"
        )
    if channels != shape[1]:
        raise ValueError(
            f"x: got shape {shape}, expected {channels} channels along axis 1; move the "
            "channels there, or make the layer anew"
        )


def check_count(x: torch.Tensor, values: int, per: str = "value per channel") -> None:
    """Raise a ValueError where a mean would be that of a single value."""
    if values < 2:
        raise ValueError(
            f"x: got shape {tuple(x.shape)}, expected more than one {per} in training: a single "
            "value is its own mean, so the output would not depend on it; use a larger batch"
        )


def check_positions(x: torch.Tensor, *, unbiased: bool) -> None:
    """Raise a ValueError where there is no unbiased variance over space."""
    positions = math.prod(x.shape[2:])
    if unbiased and positions < 2:
        raise ValueError(
            f"unbiased: got True with {positions} position per sample and channel, expected at "
            "least 2; use unbiased=False"
        )


def check_knob(name: str, value: Any, low: float, high: float = math.inf) -> None:
    """Raise a ValueError unless a number of Python is finite and in [low, high]."""
    if isinstance(value, (int, float)) and not (math.isfinite(value) and low <= value <= high):
        raise ValueError(f"{name}: got {value}, expected a finite number in [{low}, {high}]")


def check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Raise a ValueError unless the value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(map(repr, choices))}")
