"""Which of our classes takes the place of which of PyTorch's, in a model that is converted."""

import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from torchnorm.backward.linear_operation import linear_operation
from torchnorm.modules import conv, linear
from torchnorm.modules.base import Neuronwise
from torchnorm.modules.made import make
from torchnorm.modules.registered import Registered, registered_as
from torchnorm.operations.linear import Dense, LinearOperation


@dataclass(frozen=True)
class _AddMM(Dense):
    """`Dense` as the Conv1D of transformers computes it, bit for bit."""

    def apply(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        assert bias is not None
        z = torch.addmm(bias, x.view(-1, x.size(-1)), weight.T)
        return z.view(*x.shape[:-1], weight.shape[0])

    apply_detached = LinearOperation.apply_detached


class Conv1D(Neuronwise):
    """The Conv1D of transformers (GPT-2), a dense layer with weight [I, O], with the rule.

    Made by `torchnorm.convert` only.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    nf: int
    nx: int

    def neurons_first(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight as [O, I], and back."""
        return weight.T

    def extra_repr(self) -> str:
        """PyTorch's, and the gate and the rule."""
        return f"nf={self.nf}, nx={self.nx}{super().extra_repr()}"

    def forward(self, x: torch.Tensor) -> Any:
        """Apply the layer to the last axis of x [..., I]; returns z [..., O]."""
        return linear_operation(_AddMM(), x, self.weight.T, self.bias, **self.settings())


KINDS: dict[type, type[Neuronwise]] = {
    nn.Linear: linear.Linear,
    nn.Conv1d: conv.Conv1d,
    nn.Conv2d: conv.Conv2d,
    nn.Conv3d: conv.Conv3d,
    nn.ConvTranspose1d: conv.ConvTranspose1d,
    nn.ConvTranspose2d: conv.ConvTranspose2d,
    nn.ConvTranspose3d: conv.ConvTranspose3d,
}
MARK = "_converted_from"
"""The attribute of a converted layer that holds PyTorch's class."""
NAMES = ", ".join([*(kind.__name__ for kind in KINDS), "the Conv1D of transformers"])


_COMPUTES = ("forward", "_conv_forward", "_output_padding", "_call_impl", "__call__", "__getattr__")
"""What says which values a module of PyTorch returns."""


def ours(kind: type) -> type[Neuronwise] | None:
    """Our class for this class of PyTorch, or for a subclass that computes the same; or None."""
    if registered_as(kind) is not None:
        return make(Registered, kind)
    base = base_of(kind)
    if base is None or base is kind:
        return KINDS.get(kind) or (Conv1D if is_conv1d(kind) else None)
    return make(KINDS[base], kind)


def base_of(kind: type) -> type | None:
    """Which of PyTorch's classes this one is, or computes the same as."""
    for base in KINDS:
        if kind is base:
            return base
        if issubclass(kind, base) and not issubclass(kind, Neuronwise):
            same = all(getattr(kind, n, None) is getattr(base, n, None) for n in _COMPUTES)
            # (A weight of the class is a property: a parametrization.)
            return base if same and not (hasattr(kind, "weight") or hasattr(kind, "bias")) else None
    return None


def is_conv1d(kind: type) -> bool:
    """Whether this is the Conv1D of transformers."""
    # Without importing transformers: a model that has its Conv1D has imported it.
    library = sys.modules.get("transformers.pytorch_utils")
    return library is not None and kind is getattr(library, "Conv1D", None)


def is_layer(module: nn.Module) -> bool:
    """Whether the module multiplies by a kernel, converted or not, ours or a subclass."""
    kinds = (*KINDS, Neuronwise, nn.Bilinear, nn.MultiheadAttention, nn.RNNBase)
    return isinstance(module, kinds) or ours(type(module)) is not None
