"""What a layer has to record its statistics: the arguments of the rule, and the statistics."""

from typing import Any

import torch

from torchnorm.activations import DEFERRED, Gate, resolve_gate
from torchnorm.modules.neuron_stats import NeuronStats
from torchnorm.operations.linear import LinearOperation
from torchnorm.rule import Rule
from torchnorm.statistics import tracked
from torchnorm.statistics.tracked import Statistics


class Recording:
    """A weight, its bias and their statistics: a module, or one parameter of a module."""

    gate: Gate
    rule: Rule
    process_group: Any
    weight: Any
    bias: Any
    training: bool
    #: The layer's statistics, which an optimizer has asked for.
    neuron_stats: NeuronStats | None = None
    #: What the layer calls its weight and its bias.
    parameter_names: tuple[str, str] = ("weight", "bias")

    def settings(self) -> dict[str, Any]:
        """What the functions are told: gate, rule, process_group and statistics."""
        return {
            "gate": self.gate,
            "rule": self.rule,
            "process_group": self.process_group,
            "statistics": self._statistics,
        }

    def neurons_first(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight as [O, I, ...]."""
        return weight

    def as_stored(self, weight: torch.Tensor) -> torch.Tensor:
        """The way back."""
        return self.neurons_first(weight)

    def empty_statistics(self) -> Statistics:
        """Those of the layer before its first step."""
        gated = self.gate is DEFERRED or resolve_gate(self.gate) is not None
        operation = LinearOperation(groups=getattr(self, "groups", 1))
        centered = self.bias is not None
        return tracked.empty(operation, self.matrix(), self.rule, gated=gated, centered=centered)

    def matrix(self) -> torch.Tensor:
        """One weight as [O, I, ...], without its values."""
        return self.neurons_first(self.weight.detach())

    def init_statistics(self) -> NeuronStats:
        """Give the layer new statistics, and return them."""
        stats = NeuronStats(
            self.empty_statistics(),
            self.rule.statistics_every,
            shape=self.weight.shape,
            centered=self.bias is not None,
            sharded=hasattr(self.weight, "device_mesh"),
        )
        self.neuron_stats = stats
        return stats

    def _statistics(self) -> Statistics | None:
        stats = self.neuron_stats
        if stats is None or not stats.taken or not self.training:
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
