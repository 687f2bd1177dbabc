"""GroupNorm of PyTorch in either framework's convention."""

import math
from typing import Any

import torch
from torch import nn

from torchnorm.normalizers import checks
from torchnorm.normalizers.conventions import DEFAULT, Name, convention_of, epsilon_of, groups_of


class GroupNorm(nn.GroupNorm):
    """`torch.nn.GroupNorm` with the defaults of PyTorch or of Flax.

    The text is that of `jaxnorm.linen.normalizers.GroupNorm`; here the channels are dimension 1 of
    [N, C, *]. On the CPU PyTorch computes the variance of inputs that lie in memory as
    ``torch.channels_last`` as E[x^2] - E[x]^2, which at a mean of 1e4 loses every digit in float32;
    here they are laid out otherwise before, at the price of a copy.

    Args:
        num_groups: how many groups; `torchnorm.normalizers.conventions.DEFAULT` ("convention"):
            the convention's, 32 in Flax's, none in PyTorch's.
        num_channels: the number of channels.
        eps: what is added to the variance, in the units of x squared. Default: the convention's.
        affine: whether there are ``weight`` and ``bias``; default True.
        device: of the parameters.
        dtype: of the parameters.
        convention: (keyword) "torch" (default) or "flax".

    Raises:
        ValueError: for an unknown convention, an eps that is no such number, groups that do not
            divide the channels, fewer than two axes, another number of channels, and one value per
            group.

    Example:
        >>> import torch
        >>> import torchnorm
        >>> layer = torchnorm.normalizers.GroupNorm(2, 4, convention="flax")
        >>> layer(torch.tensor([[0.0, 2.0, 10.0, 20.0]])).detach()
        tensor([[-1.0000,  1.0000, -1.0000,  1.0000]])
    """

    def __init__(
        self,
        num_groups: Any,
        num_channels: int,
        eps: Any = DEFAULT,
        affine: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        convention: Name = "torch",
    ) -> None:
        defaults = convention_of(convention)
        groups = groups_of(num_groups, defaults.groups, num_channels)
        eps = epsilon_of(eps, defaults.epsilon)
        super().__init__(groups, num_channels, eps, affine, device, dtype)
        self.convention = convention

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalize the input."""
        checks.check_rank(input.shape)
        checks.check_channels(input.shape, 1, self.num_channels)
        values = math.prod(input.shape[1:]) // self.num_groups
        checks.check_values(input.shape, values, "group", "fewer groups")
        # Flat space is never channels_last, for which PyTorch's kernel of the CPU computes the
        # variance as E[x^2] - E[x]^2.
        flat = input.flatten(2) if input.ndim > 3 else input
        return super().forward(flat).view(input.shape)
