"""The statistics of a module, as buffers that no checkpoint of a plain model has to know."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from torchnorm.rule import WARM_UP
from torchnorm.statistics.tracked import Statistics


class NeuronStats(nn.Module):
    """One layer's tracked statistics; see `torchnorm.statistics.tracked`.

    Non-persistent buffers, named as the fields, so that state_dicts stay PyTorch's in both
    directions (the optimizer's state_dict holds them, see
    `torchnorm.optim.in_neuron_coordinates`). They move with the model, but never below float32.
    Their ``.grad`` gathers the statistics of the batch, as that of a parameter.

    Args:
        statistics: of the layer.
        every: see `statistics_every` of `torchnorm.Rule`.
        sharded: whether the layer's parameters are (FSDP2).

    Attributes:
        count: steps so far, as a number of Python, so that no device is waited for.
        taken: whether the next backward pass takes the statistics of its batch.
    """

    def __init__(self, statistics: Statistics, every: int = 1, *, sharded: bool = False) -> None:
        super().__init__()
        for name, value in statistics.present().items():
            self.register_buffer(name, value.requires_grad_(), persistent=False)
        self.every, self.sharded = every, sharded
        self.stepped(0)

    def stepped(self, count: int | None = None) -> None:
        """Count one step more, or set the count."""
        self.count = self.count + 1 if count is None else count
        # Not a property: torch.compile would compile anew for every count.
        self.taken = self.count < WARM_UP or self.count % self.every == 0

    def read(self) -> Statistics:
        """The buffers."""
        return Statistics(**self._buffers)

    def write(self, statistics: Statistics) -> None:
        """Replace the values in place."""
        with torch.no_grad():
            self.read().map(torch.Tensor.copy_, statistics)

    def gathered(self) -> Statistics | None:
        """The statistics gathered since they were last forgotten; None if there are none."""
        statistics = self.read()
        if all(value.grad is None for value in statistics.present().values()):
            return None
        return statistics.map(lambda v: torch.zeros_like(v) if v.grad is None else v.grad)

    def forget(self) -> None:
        """Drop what was gathered."""
        for value in self.read().present().values():
            value.grad = None

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        def moved(value: torch.Tensor) -> torch.Tensor:
            new = fn(value.detach())
            lowest = torch.promote_types(new.dtype, torch.float32)
            return value.detach().to(new.device, lowest) if new.dtype != lowest else new.detach()

        for name, value in self.read().present().items():
            self._buffers[name] = new = moved(value).requires_grad_()
            new.grad = None if value.grad is None else moved(value.grad)
        return self
