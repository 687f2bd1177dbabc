"""PyTorch modules: the host's, with the rule in their backward pass."""

from typing import Any

import torch
from torch import nn

from torchnorm import checks
from torchnorm.functional import neuronwise_linear
from torchnorm.gates import Gate, resolve_gate
from torchnorm.rule import Rule


class Linear(nn.Linear):
    """`torch.nn.Linear` with the neuron-wise rule; see `torchnorm.functional.neuronwise_linear`.

    Forward (exact):      z = x W^T + b, the host's to the last bit
    Backward (modified):  g_x true; g_W and g_b by the rule

    A subclass of the host's module with its parameters (``weight`` [O, I], ``bias`` [O]), its
    initial values and every one of its arguments: checkpoints move both ways, strictly. No buffers.

    Args:
        in_features: I.
        out_features: O.
        bias: whether there is one. Default True.
        device: as the host's.
        dtype: as the host's.
        gate: (required, keyword) the activation that follows the layer: a name of `torch.nn`, an
            elementwise callable, or None if none follows. It is not applied.
        rule: (keyword) see `torchnorm.Rule`.
        process_group: (keyword) processes over which the batch is spread; None: this one's.

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

    gate: Gate

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        gate: Gate,
        rule: Rule = Rule(),
        process_group: Any = None,
    ) -> None:
        resolve_gate(gate)
        checks.check_rule(rule)
        super().__init__(in_features, out_features, bias, device, dtype)
        # Not registered: a gate that is a module belongs to the network, not to this layer's state.
        self.__dict__["gate"] = gate
        self.rule = rule
        self.process_group = process_group

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Apply the layer to the last axis of input [..., I]; returns z [..., O]."""
        return neuronwise_linear(
            input,
            self.weight,
            self.bias,
            gate=self.gate,
            rule=self.rule,
            process_group=self.process_group,
        )

    def extra_repr(self) -> str:
        """The host's, and the gate and the rule."""
        return f"{super().extra_repr()}, gate={self.gate!r}, rule={self.rule}"
