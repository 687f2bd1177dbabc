"""LayerNorm of PyTorch in either framework's convention."""

from typing import Any

import torch
from torch import nn

from torchnorm.normalizers import checks
from torchnorm.normalizers.conventions import DEFAULT, Name, convention_of, epsilon_of


class LayerNorm(nn.LayerNorm):
    """`torch.nn.LayerNorm` with the defaults of PyTorch or of Flax.

    The text is that of `jaxnorm.linen.normalizers.LayerNorm`; here, too, the features are the last
    axes.

    Args:
        normalized_shape: of the last axes, an int or a tuple.
        eps: what is added to the variance, in the units of x squared. Default: the convention's.
        elementwise_affine: whether there is a ``weight``; default True.
        bias: whether there is a ``bias`` beside it; default True.
        device: of the parameters.
        dtype: of the parameters.
        convention: (keyword) "torch" (default) or "flax".

    Raises:
        ValueError: for an unknown convention, an eps that is no such number, and inputs that do not
            end in these axes.

    Example:
        >>> import torch
        >>> import torchnorm
        >>> layer = torchnorm.normalizers.LayerNorm(2, convention="flax")
        >>> layer(torch.tensor([[0.0, 2.0]])).detach()
        tensor([[-1.0000,  1.0000]])
    """

    def __init__(
        self,
        normalized_shape: Any,
        eps: Any = DEFAULT,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        convention: Name = "torch",
    ) -> None:
        eps = epsilon_of(eps, convention_of(convention).epsilon)
        super().__init__(normalized_shape, eps, elementwise_affine, bias, device, dtype)
        self.convention = convention

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalize the input."""
        checks.check_features(input.shape, self.normalized_shape)
        return super().forward(input)
