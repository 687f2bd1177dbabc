"""RMSNorm of PyTorch in either framework's convention."""

from typing import Any

import torch
from torch import nn

from torchnorm.normalizers import checks
from torchnorm.normalizers.conventions import DEFAULT, Name, convention_of, epsilon_of


class RMSNorm(nn.RMSNorm):
    """`torch.nn.RMSNorm` with the defaults of PyTorch or of Flax.

    The text is that of `jaxnorm.linen.normalizers.RMSNorm`; here, too, the features are the last
    axes.

    Args:
        normalized_shape: of the last axes, an int or a tuple.
        eps: what is added to the mean square, in the units of x squared; None: the spacing of
            numbers in the dtype in which it computes. Default: the convention's.
        elementwise_affine: whether there is a ``weight``; default True.
        device: of the parameters.
        dtype: of the parameters.
        convention: (keyword) "torch" (default) or "flax".

    Raises:
        ValueError: for an unknown convention, an eps that is no such number, and inputs that do not
            end in these axes.

    Example:
        >>> import torch
        >>> import torchnorm
        >>> torchnorm.normalizers.RMSNorm(2, convention="flax")(torch.tensor([[1.0, 7.0]])).detach()
        tensor([[0.2000, 1.4000]])
    """

    def __init__(
        self,
        normalized_shape: Any,
        eps: Any = DEFAULT,
        elementwise_affine: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        convention: Name = "torch",
    ) -> None:
        default = convention_of(convention).rms_epsilon
        eps = None if eps is None else epsilon_of(eps, default)
        super().__init__(normalized_shape, eps, elementwise_affine, device, dtype)
        self.convention = convention

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalize the input."""
        checks.check_features(x.shape, self.normalized_shape)
        return super().forward(x)
