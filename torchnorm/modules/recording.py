"""What a layer has to record its statistics: the arguments of the rule, and the statistics."""

from typing import Any

import torch
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor

from torchnorm.activations import DEFERRED, Gate, resolve_gate
from torchnorm.modules.neuron_stats import NeuronStats
from torchnorm.operations.linear import LinearOperation
from torchnorm.rule import Rule
from torchnorm.statistics import tracked
from torchnorm.statistics.tracked import Statistics

#: The forms in which a layer without statistics is PyTorch's.
_PLAIN = (None, "plain", "plain_with_statistics")


class Recording:
    """A weight, its bias and their statistics: a module, or one parameter of a module."""

    gate: Gate
    rule: Rule
    process_group: Any
    training: bool
    #: The layer's statistics, which an optimizer has asked for.
    neuron_stats: NeuronStats | None = None
    #: What the layer calls its weight and its bias.
    parameter_names: tuple[str, str] = ("weight", "bias")

    def own_pair(self) -> tuple[Any, Any]:
        """The layer's weight and bias, None where it has none."""
        weight, bias = (getattr(self, name, None) for name in self.parameter_names)
        return weight, bias

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
        centered = self.own_pair()[1] is not None
        return tracked.empty(
            operation, self.one_matrix(), self.rule, gated=gated, centered=centered
        )

    def one_matrix(self) -> torch.Tensor:
        """One weight as [O, I, ...], without its values."""
        return self.neurons_first(self.own_pair()[0].detach())

    def init_statistics(self) -> NeuronStats:
        """Give the layer new statistics, and return them."""
        weight, bias = self.own_pair()
        stats = NeuronStats(
            self.empty_statistics(),
            self.rule,
            shape=weight.shape,
            centered=bias is not None,
            sharded=hasattr(weight, "device_mesh"),
            parameter=weight,
        )
        self.neuron_stats = stats
        return stats

    def is_plain(self) -> bool:
        """Whether a forward pass is PyTorch's own now: nothing is recorded, nobody is told."""
        if self.gate is DEFERRED or self.rule.gradient not in _PLAIN:
            return False
        stats = self.neuron_stats
        return stats is None or not stats.taken or not (self.training or stats.in_eval)

    def _statistics(self) -> Statistics | None:
        stats, (weight, bias) = self.neuron_stats, self.own_pair()
        if stats is None or not stats.taken or not (self.training or stats.in_eval):
            return None
        # Of other parameters than the layer has now: the optimizer's next step leaves it out.
        if weight is None or stats.shape != weight.shape or stats.centered != (bias is not None):
            return None
        # What has no part in the gradient is to have none in the moments.
        if not learns(weight):
            return None
        # FSDP2 has other tensors in a pass, and keeps the gradient elsewhere; a compiled forward
        # pass changes nothing.
        if stats.sharded or torch.compiler.is_compiling():
            return stats.read()
        if weight is stats.parameter:
            # What was gathered is of a gradient that was dropped (`model.zero_grad`).
            if is_dropped(weight):
                stats.forget()
        elif weight.is_leaf and not is_functorch_wrapped_tensor(weight):
            return None  # one put in its place (`functional_call`): the gradient is that one's
        return stats.read()


def learns(weight: torch.Tensor) -> bool:
    """Whether a gradient is asked for at the weight, or at what torch.func has wrapped in it."""
    while not weight.requires_grad and torch._C._are_functorch_transforms_active():
        if not is_functorch_wrapped_tensor(weight):
            return False
        weight = get_unwrapped(weight)
    return weight.requires_grad


def is_dropped(weight: torch.Tensor) -> bool:
    """Whether a parameter's gradient was dropped, or there was none yet.

    But not where a hook may have put it elsewhere as it came (`p.main_grad`).
    """
    return weight.grad is None and not getattr(weight, "_post_accumulate_grad_hooks", None)
