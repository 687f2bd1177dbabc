"""Weight normalization, Salimans and Kingma, arXiv 1602.07868, equation 2: w = g v / |v|."""

from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from torchnorm.normalizers.conventions import Name, convention_of

#: Added to |v|^2 in Flax.
EPSILON = 1e-12


class _AsInFlax(nn.Module):
    """g v / sqrt(|v|^2 + epsilon), with g = 1 at the start."""

    def __init__(self, dim: int | None) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, g: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return g * v * torch.rsqrt(self._squared(v) + EPSILON)

    def right_inverse(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.ones_like(self._squared(weight)), weight

    def _squared(self, v: torch.Tensor) -> torch.Tensor:
        others = [a for a in range(v.ndim) if self.dim is None or a != self.dim % v.ndim]
        return v.square().sum(others, keepdim=True)


def weight_norm(
    module: nn.Module, name: str = "weight", dim: int | None = 0, *, convention: Name = "torch"
) -> Any:
    """`torch.nn.utils.parametrizations.weight_norm`, or with ``convention="flax"`` Flax's.

    The text is that of `jaxnorm.linen.normalizers.WeightNorm`. In both conventions the parameters
    are ``parametrizations.weight.original0`` (g) and ``original1`` (v).

    Args:
        module: the layer, changed in place.
        name: of the parameter.
        dim: the dimension of which every entry has a norm of its own; None: one for all.
        convention: (keyword) "torch" (default) or "flax".

    Returns:
        The layer.

    Raises:
        ValueError: for an unknown convention; PyTorch's own for a module without the parameter.

    Example:
        >>> import torch
        >>> import torchnorm
        >>> layer = torch.nn.Linear(2, 3)
        >>> layer = torchnorm.normalizers.weight_norm(layer, convention="flax")
        >>> bool(((layer.weight.norm(dim=1) - 1).abs() < 1e-6).all())
        True
    """
    convention_of(convention)
    if convention == "torch":
        return parametrizations.weight_norm(module, name, dim)  # pyright: ignore
    parametrize.register_parametrization(module, name, _AsInFlax(dim), unsafe=True)
    return module
