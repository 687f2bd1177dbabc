"""What all modules share: the arguments of the rule, and the layer's statistics."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from torchnorm import checks
from torchnorm.activations import DEFERRED, Gate, resolve_gate
from torchnorm.modules.neuron_stats import NeuronStats
from torchnorm.operations.linear import LinearOperation
from torchnorm.rule import Rule
from torchnorm.statistics import tracked
from torchnorm.statistics.tracked import Statistics


class Neuronwise(nn.Module):
    """The first base of every layer, before PyTorch's; not to be used by itself."""

    gate: Gate
    rule: Rule
    process_group: Any
    weight: torch.Tensor
    bias: Any
    #: The layer's statistics, which an optimizer has asked for.
    neuron_stats: NeuronStats | None = None

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

    def settings(self) -> dict[str, Any]:
        """What the functions are told: gate, rule, process_group and statistics."""
        return {
            "gate": self.gate,
            "rule": self.rule,
            "process_group": self.process_group,
            "statistics": self._statistics,
        }

    def neurons_first(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight as [O, I, ...], and back."""
        return weight

    def init_statistics(self) -> NeuronStats:
        """Give the layer new statistics, and return them."""
        gated = self.gate is DEFERRED or resolve_gate(self.gate) is not None
        operation = LinearOperation(groups=getattr(self, "groups", 1))
        weight = self.neurons_first(self.weight.detach())
        centered = self.bias is not None
        empty = tracked.empty(operation, weight, self.rule, gated=gated, centered=centered)
        stats = NeuronStats(
            empty,
            self.rule.statistics_every,
            shape=self.weight.shape,
            centered=centered,
            sharded=hasattr(self.weight, "device_mesh"),
        )
        self.neuron_stats = stats
        return stats

    def _statistics(self) -> Statistics | None:
        stats = self.neuron_stats
        if stats is None or not stats.taken or not (self.training or stats.in_eval):
            return None
        # Of other parameters than the layer has now: the optimizer's next step leaves it out.
        if stats.shape != self.weight.shape or stats.centered != (self.bias is not None):
            return None
        # Without a gradient, what was gathered is of one that was dropped (`model.zero_grad`). But
        # FSDP2 keeps the gradient elsewhere, and a compiled forward pass changes nothing.
        if not (stats.sharded or torch.compiler.is_compiling()):
            if self.weight.is_leaf and self.weight.grad is None:
                stats.forget()
        return stats.read()

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
