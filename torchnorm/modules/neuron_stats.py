"""The statistics of a module, which no checkpoint of a plain model has to know."""

from collections.abc import Callable
from typing import Any

import torch

from torchnorm.coordinates import Coordinates, foreach
from torchnorm.rule import Rule, is_due, is_thinned
from torchnorm.statistics.tracked import Statistics


class NeuronStats:
    """One layer's tracked statistics; see `torchnorm.statistics.tracked`.

    Not a module, and its tensors no buffers: a model with statistics is, to all that walks through
    it (averages of models, DDP, checkpoints), the model without. They move with the layer, but
    never below float32. Their ``.grad`` gathers the statistics of the batch, as that of a
    parameter.

    Args:
        statistics: of the layer.
        rule: of the layer.
        shape: of the layer's weight.
        centered: whether the layer has a bias.
        sharded: whether the layer's parameters are (FSDP2).
        parameter: the layer's weight itself, whose gradient the statistics go with.

    Attributes:
        values: the tensors, without their gradients.
        count: steps so far, as a number of Python, so that no device is waited for.
        age: how many of them since statistics were taken last.
        usable: whether there are any, as far as is known.
        settles: whether merged statistics are coordinates (see `merging.settled`).
        coordinates: what steps have made of the statistics since they were written, of a layer
            whose bias may move or not.
        taken: whether the next backward pass takes the statistics of its batch.
        in_eval: whether a forward pass in eval mode is recorded too.
    """

    def __init__(
        self,
        statistics: Statistics,
        rule: Rule,
        *,
        shape: torch.Size,
        centered: bool,
        sharded: bool,
        parameter: torch.Tensor,
    ) -> None:
        self._hold(statistics.map(torch.Tensor.requires_grad_))
        self.coordinates: dict[bool, Coordinates] = {}
        self.interval, self.smoothing = rule.interval, rule.smoothing
        self.remembers = rule.remembers
        self.settles = rule.interval > 1 and not rule.remembers
        self.shape, self.centered, self.sharded = shape, centered, sharded
        self.parameter = parameter
        self.in_eval = self.usable = False
        self.set_count(0, 0)

    def stepped(self, *, recorded: bool) -> None:
        """Count one step more, in which those that were due were recorded, or not."""
        self.set_count(self.count + 1, 1 if recorded else self.age + 1)

    @property
    def memory(self) -> dict[str, Any]:
        """How new statistics are merged with those so far: arguments of `merging.merge`."""
        smoothing = self.smoothing if is_thinned(self.count, self.interval) else 0.0
        return {"remembers": self.remembers, "settles": self.settles, "smoothing": smoothing}

    @property
    def at_first(self) -> bool:
        """Whether statistics are taken in every step, but will not be later."""
        return self.interval > 1 and not is_thinned(self.count, self.interval)

    def set_count(self, count: int, age: int) -> None:
        """Set the count of steps, and how many ago statistics were taken last."""
        self.count, self.age = count, age
        # Not a property: torch.compile would compile anew for every count.
        # (Without usable ones the layer makes no step, so it takes whatever comes.)
        self.taken = not self.usable or is_due(count, age, self.interval)

    def __getstate__(self) -> dict[str, Any]:
        # (What shares memory would not any more.)
        return vars(self) | {"values": None, "coordinates": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._hold(self._values)

    def _hold(self, statistics: Statistics) -> None:
        self._values = statistics
        self.values = statistics.map(torch.Tensor.detach)

    def read(self) -> Statistics:
        """The tensors, whose gradient is gathered."""
        return self._values

    def write(self, statistics: Statistics) -> None:
        """Replace the values in place."""
        with torch.no_grad():
            held, new = self.values.present(), statistics.present()
            foreach._foreach_copy_(list(held.values()), [new[name] for name in held])
        self.coordinates = {}
        if not self.usable:
            # Once they are it stays so, and no device has to be waited for again.
            self.usable = bool((statistics.calls > 0).all())

    @property
    def has_gathered(self) -> bool:
        """Whether any were since they were last forgotten."""
        return any(value is not None and value.grad is not None for value in self.read())

    def gathered(self) -> Statistics | None:
        """The statistics gathered since they were last forgotten; None if there are none."""
        if not self.has_gathered:
            return None
        return self.read().map(lambda v: torch.zeros_like(v) if v.grad is None else v.grad)

    def forget(self) -> None:
        """Drop what was gathered."""
        for value in self.read():
            if value is not None:
                value.grad = None

    def move(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Follow what `torch.nn.Module._apply` does to the parameters, to device and dtype."""

        def moved(value: torch.Tensor) -> torch.Tensor:
            # Of no entries: `Module.to_empty` would leave in them what it finds there.
            like = change(value.detach().flatten()[:0])
            packed = value.dtype == torch.bfloat16
            dtype = value.dtype if packed else torch.promote_types(like.dtype, torch.float32)
            if value.is_meta and not like.is_meta:
                return torch.zeros_like(value, device=like.device, dtype=dtype)
            return value.detach().to(like.device, dtype)

        def with_grad(value: torch.Tensor) -> torch.Tensor:
            new = moved(value).requires_grad_()
            new.grad = None if value.grad is None else moved(value.grad)
            return new

        self._hold(self._values.map(with_grad))
        self.coordinates = {}
