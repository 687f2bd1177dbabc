"""What all modules share: the arguments of the rule, and the layer's statistics."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from torchnorm import checks
from torchnorm.activations import Gate, resolve_gate
from torchnorm.modules.recording import Recording
from torchnorm.rule import Rule


class Neuronwise(Recording, nn.Module):
    """The first base of every layer, before PyTorch's; not to be used by itself."""

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

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        if self.neuron_stats is not None:
            self.neuron_stats.move(fn)
        return self

    def __getstate__(self) -> dict[str, Any]:
        # The statistics are the optimizer's: it gives them to its copy's layers.
        return {name: value for name, value in vars(self).items() if name != "neuron_stats"}

    def extra_repr(self) -> str:
        """PyTorch's, and the gate and the rule."""
        return f"{super().extra_repr()}, gate={self.gate!r}, rule={self.rule}"
