"""Hooks that carry a layer's probe to the place where its activation is seen.

Instances of these classes, and nothing else, hang on a converted model's modules; they refer to one
another but to no module, so that a copied or pickled model has its own.
"""

from dataclasses import dataclass, field
from typing import Any

import torch

from torchnorm.functional import observe
from torchnorm.gates import Gate, gate_slope, resolve_gate


class _Forgetful:
    """Waiting probes belong to a forward pass, not to a copy of the model."""

    waiting: dict

    def __getstate__(self) -> dict:
        return {**vars(self), "waiting": {}}


@dataclass(frozen=True)
class Transport:
    """How a layer's output was laid out anew on its way to u: axes permuted, reshaped, permuted.

    Sizes are those of u, whatever the batch.
    """

    before: tuple[int, ...] = ()
    reshaped: bool = False
    after: tuple[int, ...] = ()

    def __call__(self, probe: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        """The probe, laid out as u is."""
        if self.before:
            probe = probe.permute(self.before)
        if self.reshaped:
            shape = list(u.shape)
            for place, axis in enumerate(self.after):
                shape[axis] = u.shape[place]
            probe = probe.reshape(shape)
        return probe.permute(self.after) if self.after else probe


@dataclass
class Seat:
    """Where one layer's activation is seen: at which call of the module, how, and by which gate."""

    gate: Gate
    transport: Transport
    calls: int  # 1: the first call of the module after the layer


@dataclass(eq=False)
class Box(_Forgetful):
    """Probes that wait for a module to be called; shared by the layers and that module."""

    seats: list[Seat] = field(default_factory=list)
    waiting: dict[int, Any] = field(default_factory=dict)

    def put(self, seat: int, probe: torch.Tensor) -> None:
        """A layer was called."""
        self.waiting[seat] = (probe, self.seats[seat].calls)

    def observed(self, u: torch.Tensor) -> torch.Tensor:
        """u, with the probes told that were waiting for it."""
        for index in list(self.waiting):
            probe, calls = self.waiting.pop(index)
            if calls > 1:
                self.waiting[index] = (probe, calls - 1)
            elif torch.is_grad_enabled():
                seat = self.seats[index]
                u = observe(u, seat.transport(probe, u), seat.gate)
        return u


@dataclass(eq=False)
class TakeProbe:
    """Forward hook of an observed layer: keeps the probe and returns z, as the host does."""

    box: Box
    seat: int

    def __call__(self, module: Any, args: Any, output: Any) -> torch.Tensor:
        """The hook."""
        z, probe = output
        if torch.is_grad_enabled():
            self.box.put(self.seat, probe)
        return z


@dataclass(eq=False)
class ObserveInput:
    """Forward pre-hook: the module's first tensor is what the activation sees."""

    box: Box

    def __call__(self, module: Any, args: tuple, kwargs: dict) -> Any:
        """The hook."""
        if not self.box.waiting:
            return None
        if args:
            return (self.box.observed(args[0]), *args[1:]), kwargs
        name = next(name for name, value in kwargs.items() if isinstance(value, torch.Tensor))
        return args, {**kwargs, name: self.box.observed(kwargs[name])}


@dataclass(eq=False)
class ObserveOutput:
    """Forward hook: what the module returns is what the activation sees."""

    box: Box

    def __call__(self, module: Any, args: Any, output: Any) -> Any:
        """The hook."""
        return self.box.observed(output) if self.box.waiting else None


@dataclass(eq=False)
class Factors(_Forgetful):
    """The two layers of a gated unit, a(z1) b(z2): each one's slope holds the other's value."""

    gates: tuple[Gate, Gate]
    waiting: dict[int, Any] = field(default_factory=dict)

    def meet(self, which: int, z: torch.Tensor, probe: torch.Tensor) -> torch.Tensor:
        """Keep what the other layer will need; if that one was first, tell both."""
        value, slope = _value_and_slope(self.gates[which], z.detach())
        other = self.waiting.pop(1 - which, None)
        if other is None:
            self.waiting[which] = (probe, value, slope)
            return z
        other_probe, other_value, other_slope = other
        z = observe(z, probe, slope=slope * other_value)
        return observe(z, other_probe, slope=other_slope * value)


def _value_and_slope(gate: Gate, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both at least float32, and not z's memory, which may be overwritten."""
    slope = gate_slope(gate, z)
    phi = resolve_gate(gate)
    z = z.to(torch.promote_types(z.dtype, torch.float32), copy=True)
    if slope is None:
        return z, torch.ones_like(z)
    return phi(z), slope


@dataclass(eq=False)
class TakeFactor:
    """Forward hook of either layer of a gated unit: returns z, as the host does."""

    factors: Factors
    which: int

    def __call__(self, module: Any, args: Any, output: Any) -> torch.Tensor:
        """The hook."""
        z, probe = output
        return self.factors.meet(self.which, z, probe) if torch.is_grad_enabled() else z


@dataclass(eq=False)
class Afresh:
    """Forward pre-hook of the whole model: forgets what a pass that broke off left behind."""

    boxes: list[Any]

    def __call__(self, module: Any, args: Any) -> None:
        """The hook."""
        for box in self.boxes:
            box.waiting.clear()


HOOKS = (TakeProbe, ObserveInput, ObserveOutput, TakeFactor, Afresh)
