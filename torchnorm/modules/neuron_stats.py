"""The statistics of a module, which no checkpoint of a plain model has to know."""

from collections.abc import Callable

import torch

from torchnorm.rule import WARM_UP
from torchnorm.statistics.tracked import Statistics


class NeuronStats:
    """One layer's tracked statistics; see `torchnorm.statistics.tracked`.

    Not a module, and its tensors no buffers: a model with statistics is, to all that walks through
    it (averages of models, DDP, checkpoints), the model without. They move with the layer, but
    never below float32. Their ``.grad`` gathers the statistics of the batch, as that of a
    parameter.

    Args:
        statistics: of the layer.
        every: see `statistics_every` of `torchnorm.Rule`.
        shape: of the layer's weight.
        centered: whether the layer has a bias.
        sharded: whether the layer's parameters are (FSDP2).

    Attributes:
        count: steps so far, as a number of Python, so that no device is waited for.
        taken: whether the next backward pass takes the statistics of its batch.
        in_eval: whether a forward pass in eval mode is recorded too.
    """

    def __init__(
        self,
        statistics: Statistics,
        every: int,
        *,
        shape: torch.Size,
        centered: bool,
        sharded: bool,
    ) -> None:
        self._values = statistics.map(torch.Tensor.requires_grad_)
        self.every, self.shape, self.centered, self.sharded = every, shape, centered, sharded
        self.in_eval = False
        self.stepped(0)

    def stepped(self, count: int | None = None) -> None:
        """Count one step more, or set the count."""
        self.count = self.count + 1 if count is None else count
        # Not a property: torch.compile would compile anew for every count.
        self.taken = self.count < WARM_UP or self.count % self.every == 0

    def read(self) -> Statistics:
        """The tensors."""
        return self._values

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

    def move(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Follow what `torch.nn.Module._apply` does to the parameters, to device and dtype."""

        def moved(value: torch.Tensor) -> torch.Tensor:
            # Of no entries: `Module.to_empty` would leave in them what it finds there.
            like = change(value.detach().flatten()[:0])
            dtype = torch.promote_types(like.dtype, torch.float32)
            if value.is_meta and not like.is_meta:
                return torch.zeros_like(value, device=like.device, dtype=dtype)
            return value.detach().to(like.device, dtype)

        def with_grad(value: torch.Tensor) -> torch.Tensor:
            new = moved(value).requires_grad_()
            new.grad = None if value.grad is None else moved(value.grad)
            return new

        self._values = self._values.map(with_grad)
