"""What the modules with running statistics share: PyTorch's arguments, buffers and dtypes."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

_State = TypeVar("_State", bound=NamedTuple)


class Normalizer(nn.Module):
    """The base of the modules; not to be used by itself."""

    #: The buffers that are not called running_ and the name in the state.
    buffer_names: Mapping[str, str] = MappingProxyType({})

    def __init__(self, num_features: int, eps: float, momentum: float) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum

    def initial(self, device: Any, dtype: Any) -> tuple[NamedTuple, ...]:
        """The states before any step."""
        raise NotImplementedError

    def make_stats(self, device: Any, dtype: Any) -> None:
        """Register the buffers."""
        for state in self.initial(device, dtype):
            for name, value in state._asdict().items():
                self.register_buffer(self._buffer(name), value)

    def reset_running_stats(self) -> None:
        """The initial states."""
        device = next((buffer.device for buffer in self.buffers(recurse=False)), None)
        for state in self.initial(device, None):
            self.write(state)

    def read(self, kind: type[_State]) -> _State:
        """The buffers as such a tuple."""
        return kind._make(getattr(self, self._buffer(name)) for name in kind._fields)

    @torch.no_grad()
    def write(self, new: NamedTuple) -> None:
        """Such a tuple into the buffers, in place."""
        for name, value in new._asdict().items():
            getattr(self, self._buffer(name)).copy_(value)

    def _buffer(self, name: str) -> str:
        return self.buffer_names.get(name, f"running_{name}")

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}"


class Affine(Normalizer):
    """Those with a weight and a bias per channel."""

    weight: Any
    bias: Any

    def __init__(
        self,
        num_features: int,
        eps: float,
        momentum: float,
        affine: bool,
        device: Any,
        dtype: Any,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__(num_features, eps, momentum)
        self.affine = affine
        for name, there in (("weight", affine), ("bias", affine and bias)):
            empty = torch.empty(num_features, device=device, dtype=dtype) if there else None
            self.register_parameter(name, None if empty is None else nn.Parameter(empty))

    def reset_parameters(self) -> None:
        """The initial states and parameters: weights 1, biases 0."""
        self.reset_running_stats()
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{super().extra_repr()}, affine={self.affine}"
