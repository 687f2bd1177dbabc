"""PyTorch modules: PyTorch's, with the rule in their backward pass."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from torchnorm import checks
from torchnorm.activations import DEFERRED, Gate, resolve_gate
from torchnorm.functional import (
    neuronwise_conv1d,
    neuronwise_conv2d,
    neuronwise_conv3d,
    neuronwise_conv_transpose1d,
    neuronwise_conv_transpose2d,
    neuronwise_conv_transpose3d,
    neuronwise_linear,
)
from torchnorm.modules.neuron_stats import NeuronStats
from torchnorm.operations.convolution import swap_channels
from torchnorm.operations.linear import LinearOperation
from torchnorm.rule import Rule
from torchnorm.statistics import tracked
from torchnorm.statistics.tracked import Statistics


class Neuronwise(nn.Module):
    """What all modules of this file share; not to be used by itself."""

    gate: Gate
    rule: Rule
    process_group: Any
    weight: torch.Tensor
    bias: Any

    def __init__(
        self, *args, gate: Gate, rule: Rule = Rule(), process_group: Any = None, **kwargs
    ) -> None:
        resolve_gate(gate)
        checks.check_rule(rule)
        super().__init__(*args, **kwargs)
        # Not registered: a gate that is a module belongs to the network, not to this layer's state.
        self.__dict__["gate"] = gate
        self.rule = rule
        self.process_group = process_group

    @property
    def neuron_stats(self) -> NeuronStats | None:
        """The layer's statistics, which an optimizer has asked for."""
        return self._modules.get("neuron_stats")  # type: ignore[return-value]

    def _swapped(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight as [O, I, ...], and back."""
        return weight

    def _record(self) -> NeuronStats:
        """Give the layer new statistics, and return them."""
        gated = self.gate is DEFERRED or resolve_gate(self.gate) is not None
        operation = LinearOperation(groups=getattr(self, "groups", 1))
        weight = self._swapped(self.weight.detach())
        how = {"gated": gated, "centered": self.bias is not None}
        empty = tracked.empty(operation, weight, self.rule, **how)
        sharded = hasattr(self.weight, "device_mesh")
        own = NeuronStats(empty, self.rule.statistics_every, sharded=sharded)
        self._modules["neuron_stats"] = own
        return own

    def _statistics(self) -> Statistics | None:
        own = self.neuron_stats
        if own is None or not own.taken or not self.training:
            return None
        # Without a gradient, what was gathered is of one that was dropped (`model.zero_grad`). But
        # FSDP2 keeps the gradient elsewhere, and a compiled forward pass changes nothing.
        if not (own.sharded or torch.compiler.is_compiling()):
            if self.weight.is_leaf and self.weight.grad is None:
                own.forget()
        return own.read()

    def _how(self) -> dict[str, Any]:
        return {
            "gate": self.gate,
            "rule": self.rule,
            "process_group": self.process_group,
            "statistics": self._statistics,
        }

    def extra_repr(self) -> str:
        """PyTorch's, and the gate and the rule."""
        return f"{super().extra_repr()}, gate={self.gate!r}, rule={self.rule}"


class Linear(Neuronwise, nn.Linear):
    """`torch.nn.Linear` with the neuron-wise rule; see `torchnorm.functional.neuronwise_linear`.

    Forward (exact):      z = x W^T + b, PyTorch's to the last bit
    Backward (default):   PyTorch's, to the last bit; an optimizer from
                          `torchnorm.optim.in_neuron_coordinates` has the statistics recorded
    Backward (modified):  with ``Rule(gradient="preconditioned")``: g_x true; g_W and g_b by the
                          rule

    A subclass of PyTorch's module with its parameters (``weight`` [O, I], ``bias`` [O]), its
    initial values and every one of its arguments: checkpoints move both ways, strictly. Statistics
    are buffers that an optimizer adds, and not in the state_dict.

    Args:
        *args: the arguments of `torch.nn.Linear`.
        gate: (required, keyword) the activation that follows the layer: a name of `torch.nn`, an
            elementwise callable, or None if none follows. It is not applied. With
            `torchnorm.DEFERRED` the layer returns (z, handle), see `torchnorm.tell_gate`.
        rule: (keyword) see `torchnorm.Rule`.
        process_group: (keyword) processes over which the batch is spread; None: this one's alone,
            for recorded statistics all (see `torchnorm.optim.in_neuron_coordinates`).
        **kwargs: the arguments of `torch.nn.Linear`.

    Raises:
        TypeError, ValueError: as `torchnorm.functional.neuronwise_linear`.

    Example:
        >>> import torch, torchnorm
        >>> model = torch.nn.Sequential(
        ...     torchnorm.Linear(5, 16, gate="relu"),
        ...     torch.nn.ReLU(),
        ...     torchnorm.Linear(16, 3, gate=None),
        ... )
        >>> model[0]
        Linear(in_features=5, out_features=16, bias=True, gate='relu', rule=Rule())
        >>> model(torch.ones(2, 5)).shape
        torch.Size([2, 3])
    """

    def forward(self, input: torch.Tensor) -> Any:
        """Apply the layer to the last axis of input [..., I]; returns z [..., O]."""
        return neuronwise_linear(input, self.weight, self.bias, **self._how())


class _Convolution(Neuronwise, nn.modules.conv._ConvNd):
    def _convolved(self, function, input, weight, bias):
        padding = self.padding
        if self.padding_mode != "zeros":
            # Real samples, not zeros: laid round x as PyTorch does.
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        how = (self.stride, padding, self.dilation, self.groups)
        return function(input, weight, bias, *how, **self._how())


class _TransposedConvolution(Neuronwise, nn.modules.conv._ConvTransposeNd):
    def _swapped(self, weight: torch.Tensor) -> torch.Tensor:
        return swap_channels(weight, self.groups)

    def _transposed(self, rank, function, input, output_size):
        if self.padding_mode != "zeros":
            raise ValueError(f"padding_mode: got {self.padding_mode!r}, expected 'zeros'")
        geometry: Any = (self.stride, self.padding, self.kernel_size, rank, self.dilation)
        output_padding = self._output_padding(input, output_size, *geometry)
        how = (self.stride, self.padding, output_padding, self.groups, self.dilation)
        return function(input, self.weight, self.bias, *how, **self._how())


class Conv1d(_Convolution, nn.Conv1d):
    """`torch.nn.Conv1d` with the neuron-wise rule; see `torchnorm.functional.neuronwise_conv1d`.

    Forward (exact):      z, PyTorch's to the last bit
    Backward (default):   PyTorch's, with the statistics recorded, as in `Linear`
    Backward (modified):  with ``Rule(gradient="preconditioned")``: g_x true; g_W and g_b by the
                          rule, a sample being an image and a position

    A subclass of PyTorch's module with its parameters, its initial values and every one of its
    arguments, by position or keyword.

    Args:
        *args: the arguments of `torch.nn.Conv1d`.
        gate: (required, keyword) as in `Linear`.
        rule: (keyword) see `torchnorm.Rule`; `statistics_rows` counts whole images.
        process_group: (keyword) as in `Linear`.
        **kwargs: the arguments of `torch.nn.Conv1d`.

    Raises:
        TypeError, ValueError: as `torchnorm.functional.neuronwise_conv1d`.

    Example:
        >>> import torch, torchnorm
        >>> layer = torchnorm.Conv1d(3, 16, 3, stride=2, padding=1, gate="relu")
        >>> layer(torch.ones(2, 3, 8)).shape
        torch.Size([2, 16, 4])
    """

    def _conv_forward(self, input: torch.Tensor, weight: torch.Tensor, bias: Any) -> Any:
        return self._convolved(neuronwise_conv1d, input, weight, bias)


class Conv2d(_Convolution, nn.Conv2d):
    """`torch.nn.Conv2d` with the neuron-wise rule; see `torchnorm.functional.neuronwise_conv2d`.

    Forward (exact):      z, PyTorch's to the last bit
    Backward (default):   PyTorch's, with the statistics recorded, as in `Linear`
    Backward (modified):  with ``Rule(gradient="preconditioned")``: g_x true; g_W and g_b by the
                          rule, a sample being an image and a position

    A subclass of PyTorch's module with its parameters, its initial values and every one of its
    arguments, by position or keyword.

    Args:
        *args: the arguments of `torch.nn.Conv2d`.
        gate: (required, keyword) as in `Linear`.
        rule: (keyword) see `torchnorm.Rule`; `statistics_rows` counts whole images.
        process_group: (keyword) as in `Linear`.
        **kwargs: the arguments of `torch.nn.Conv2d`.

    Raises:
        TypeError, ValueError: as `torchnorm.functional.neuronwise_conv2d`.

    Example:
        >>> import torch, torchnorm
        >>> layer = torchnorm.Conv2d(3, 16, 3, stride=2, padding=1, gate="relu")
        >>> layer(torch.ones(2, 3, 8, 8)).shape
        torch.Size([2, 16, 4, 4])
    """

    def _conv_forward(self, input: torch.Tensor, weight: torch.Tensor, bias: Any) -> Any:
        return self._convolved(neuronwise_conv2d, input, weight, bias)


class Conv3d(_Convolution, nn.Conv3d):
    """`torch.nn.Conv3d` with the neuron-wise rule; see `torchnorm.functional.neuronwise_conv3d`.

    Forward (exact):      z, PyTorch's to the last bit
    Backward (default):   PyTorch's, with the statistics recorded, as in `Linear`
    Backward (modified):  with ``Rule(gradient="preconditioned")``: g_x true; g_W and g_b by the
                          rule, a sample being an image and a position

    A subclass of PyTorch's module with its parameters, its initial values and every one of its
    arguments, by position or keyword.

    Args:
        *args: the arguments of `torch.nn.Conv3d`.
        gate: (required, keyword) as in `Linear`.
        rule: (keyword) see `torchnorm.Rule`; `statistics_rows` counts whole images.
        process_group: (keyword) as in `Linear`.
        **kwargs: the arguments of `torch.nn.Conv3d`.

    Raises:
        TypeError, ValueError: as `torchnorm.functional.neuronwise_conv3d`.

    Example:
        >>> import torch, torchnorm
        >>> layer = torchnorm.Conv3d(3, 16, 3, stride=2, padding=1, gate="relu")
        >>> layer(torch.ones(2, 3, 8, 8, 8)).shape
        torch.Size([2, 16, 4, 4, 4])
    """

    def _conv_forward(self, input: torch.Tensor, weight: torch.Tensor, bias: Any) -> Any:
        return self._convolved(neuronwise_conv3d, input, weight, bias)


class ConvTranspose1d(_TransposedConvolution, nn.ConvTranspose1d):
    """`torch.nn.ConvTranspose1d` with the rule; see `neuronwise_conv_transpose1d`.

    Forward (exact):      z, PyTorch's to the last bit
    Backward (default):   PyTorch's, with the statistics recorded, as in `Linear`
    Backward (modified):  with ``Rule(gradient="preconditioned")``: g_x true; g_W and g_b by the
                          rule, a sample being an image and a position

    A subclass of PyTorch's module with its parameters, its initial values and every one of its
    arguments, by position or keyword.

    Args:
        *args: the arguments of `torch.nn.ConvTranspose1d`.
        gate: (required, keyword) as in `Linear`.
        rule: (keyword) see `torchnorm.Rule`; `statistics_rows` counts whole images.
        process_group: (keyword) as in `Linear`.
        **kwargs: the arguments of `torch.nn.ConvTranspose1d`.

    Raises:
        TypeError, ValueError: as `torchnorm.functional.neuronwise_conv_transpose1d`.

    Example:
        >>> import torch, torchnorm
        >>> layer = torchnorm.ConvTranspose1d(3, 16, 2, stride=2, gate="relu")
        >>> layer(torch.ones(2, 3, 4)).shape
        torch.Size([2, 16, 8])
    """

    def forward(self, input: torch.Tensor, output_size: list[int] | None = None) -> Any:
        """Apply the layer to input [N, C, *space]; returns z [N, O, *space']."""
        return self._transposed(1, neuronwise_conv_transpose1d, input, output_size)


class ConvTranspose2d(_TransposedConvolution, nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d` with the rule; see `neuronwise_conv_transpose2d`.

    Forward (exact):      z, PyTorch's to the last bit
    Backward (default):   PyTorch's, with the statistics recorded, as in `Linear`
    Backward (modified):  with ``Rule(gradient="preconditioned")``: g_x true; g_W and g_b by the
                          rule, a sample being an image and a position

    A subclass of PyTorch's module with its parameters, its initial values and every one of its
    arguments, by position or keyword.

    Args:
        *args: the arguments of `torch.nn.ConvTranspose2d`.
        gate: (required, keyword) as in `Linear`.
        rule: (keyword) see `torchnorm.Rule`; `statistics_rows` counts whole images.
        process_group: (keyword) as in `Linear`.
        **kwargs: the arguments of `torch.nn.ConvTranspose2d`.

    Raises:
        TypeError, ValueError: as `torchnorm.functional.neuronwise_conv_transpose2d`.

    Example:
        >>> import torch, torchnorm
        >>> layer = torchnorm.ConvTranspose2d(3, 16, 2, stride=2, gate="relu")
        >>> layer(torch.ones(2, 3, 4, 4)).shape
        torch.Size([2, 16, 8, 8])
    """

    def forward(self, input: torch.Tensor, output_size: list[int] | None = None) -> Any:
        """Apply the layer to input [N, C, *space]; returns z [N, O, *space']."""
        return self._transposed(2, neuronwise_conv_transpose2d, input, output_size)


class ConvTranspose3d(_TransposedConvolution, nn.ConvTranspose3d):
    """`torch.nn.ConvTranspose3d` with the rule; see `neuronwise_conv_transpose3d`.

    Forward (exact):      z, PyTorch's to the last bit
    Backward (default):   PyTorch's, with the statistics recorded, as in `Linear`
    Backward (modified):  with ``Rule(gradient="preconditioned")``: g_x true; g_W and g_b by the
                          rule, a sample being an image and a position

    A subclass of PyTorch's module with its parameters, its initial values and every one of its
    arguments, by position or keyword.

    Args:
        *args: the arguments of `torch.nn.ConvTranspose3d`.
        gate: (required, keyword) as in `Linear`.
        rule: (keyword) see `torchnorm.Rule`; `statistics_rows` counts whole images.
        process_group: (keyword) as in `Linear`.
        **kwargs: the arguments of `torch.nn.ConvTranspose3d`.

    Raises:
        TypeError, ValueError: as `torchnorm.functional.neuronwise_conv_transpose3d`.

    Example:
        >>> import torch, torchnorm
        >>> layer = torchnorm.ConvTranspose3d(3, 16, 2, stride=2, gate="relu")
        >>> layer(torch.ones(2, 3, 4, 4, 4)).shape
        torch.Size([2, 16, 8, 8, 8])
    """

    def forward(self, input: torch.Tensor, output_size: list[int] | None = None) -> Any:
        """Apply the layer to input [N, C, *space]; returns z [N, O, *space']."""
        return self._transposed(3, neuronwise_conv_transpose3d, input, output_size)
