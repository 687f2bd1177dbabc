"""Hooks that carry a layer's handle to the place where its activation is seen.

Instances of these classes, and nothing else, hang on a converted model's modules; they refer to one
another but to no module, so that a copied or pickled model has its own.
"""

from dataclasses import dataclass, field
from typing import Any

import torch

from torchnorm.activations import Gate, gate_slope, resolve_gate, without_hooks
from torchnorm.functional import tell_gate


class _Forgetful:
    """Waiting handles belong to a forward pass, not to a copy of the model."""

    waiting: dict
    told: Any

    def __getstate__(self) -> dict:
        return {**vars(self), "waiting": {}, "told": type(self.told)()}


def _recomputing() -> bool:
    """Whether this is a checkpoint's second forward pass, within the backward pass.

    Without `use_reentrant` it has to save as many tensors as the first one did, though layers
    outside of the checkpoint do not run again: what they were told is told to a dummy then.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _segment() -> int | None:
    """Which checkpoint without `use_reentrant`, or other hook on what is saved, is active."""
    if torch.compiler.is_compiling():
        return None
    autograd = torch._C._autograd  # pyright: ignore[reportAttributeAccessIssue]
    hooks = autograd._top_saved_tensors_default_hooks(True)
    return None if hooks is None else id(hooks[0])


def _dummy(u: torch.Tensor) -> torch.Tensor:
    dtype = torch.promote_types(u.dtype, torch.float32)
    return torch.zeros((), dtype=dtype, device=u.device, requires_grad=True).expand(u.shape)


@dataclass(frozen=True)
class Transport:
    """How a layer's output was laid out anew on its way to u: axes permuted, reshaped, permuted.

    Sizes are those of u, whatever the batch.
    """

    before: tuple[int, ...] = ()
    reshaped: bool = False
    after: tuple[int, ...] = ()

    def fits(self, handle: torch.Tensor, u: torch.Tensor) -> bool:
        """Whether the handle can be laid out as u is."""
        if self.before and len(self.before) != handle.ndim:
            return False
        if self.reshaped:
            return handle.numel() == u.numel() and len(self.after) in (0, u.ndim)
        shape = [handle.shape[axis] for axis in self.before] if self.before else handle.shape
        return tuple(shape) == tuple(u.shape)

    def __call__(self, handle: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        """The handle, laid out as u is."""
        if self.before:
            handle = handle.permute(self.before)
        if self.reshaped:
            shape = list(u.shape)
            for place, axis in enumerate(self.after):
                shape[axis] = u.shape[place]
            handle = handle.reshape(shape)
        return handle.permute(self.after) if self.after else handle


@dataclass
class Seat:
    """Where one layer's activation is seen: at which call of the module, how, and by which gate."""

    gate: Gate
    transport: Transport
    calls: int  # 1: the first call of the module after the layer


@dataclass(eq=False)
class Box(_Forgetful):
    """Handles that wait for a module to be called; shared by the layers and that module."""

    seats: list[Seat] = field(default_factory=list)
    waiting: dict[int, Any] = field(default_factory=dict)
    told: set[tuple[int, ...]] = field(default_factory=set)  # the seats, by each call of the module

    def put(self, seat: int, handle: torch.Tensor) -> None:
        """A layer was called."""
        self.waiting[seat] = (handle, self.seats[seat].calls)

    def deferred(self, u: torch.Tensor) -> torch.Tensor:
        """u, with the handles told that were waiting for it."""
        # All are taken out first: the gate may be, or hold, a module that tells for this box.
        found = {}
        for index, (handle, calls) in [(i, self.waiting.pop(i)) for i in list(self.waiting)]:
            transport = self.seats[index].transport
            if calls > 1:
                self.waiting[index] = (handle, calls - 1)
            # One that a pass left behind (it broke off, it was of a part of the model, it was the
            # recomputation of a checkpoint) is dropped.
            elif torch.is_grad_enabled() and transport.fits(handle, u) and _upstream(handle, u):
                found[index] = transport(handle, u)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            if not _recomputing():
                self.told.add(tuple(found))
            elif len(self.told) == 1:  # else it is not known which of the calls this one is
                (seats,) = self.told
                found = {index: found.get(index, None) for index in seats}
        for index, handle in found.items():
            u = tell_gate(u, _dummy(u) if handle is None else handle, self.seats[index].gate)
        return u


def _upstream(handle: torch.Tensor, u: torch.Tensor) -> bool:
    """Whether u was computed from the output of the layer that the handle came from."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return True  # no graph to look at
    layer, start = handle.grad_fn, u.grad_fn
    if layer is None or start is None:
        return False
    oldest, seen, queue = layer._sequence_nr(), {start}, [start]
    for node in queue:
        if node is layer:
            return True
        for parent, _ in node.next_functions:
            # What is older than the layer cannot lead to it.
            if parent is not None and parent not in seen and parent._sequence_nr() >= oldest:
                seen.add(parent)
                queue.append(parent)
        if len(queue) > 10_000:
            break
    return False


@dataclass(eq=False)
class TakeHandle:
    """Forward hook of an deferred layer: keeps the handle and returns z, as PyTorch does."""

    box: Box
    seat: int

    def __call__(self, module: Any, args: Any, output: Any) -> torch.Tensor:
        """The hook."""
        z, handle = output
        if torch.is_grad_enabled():
            self.box.put(self.seat, handle)
        return z


@dataclass(eq=False)
class TellInput:
    """Forward pre-hook: the module's first tensor is what the activation sees."""

    box: Box

    def __call__(self, module: Any, args: tuple, kwargs: dict) -> Any:
        """The hook."""
        if not (self.box.waiting or self.box.told):
            return None
        if args:
            return (self.box.deferred(args[0]), *args[1:]), kwargs
        name = next(name for name, value in kwargs.items() if isinstance(value, torch.Tensor))
        return args, {**kwargs, name: self.box.deferred(kwargs[name])}


@dataclass(eq=False)
class TellOutput:
    """Forward hook: what the module returns is what the activation sees."""

    box: Box

    def __call__(self, module: Any, args: Any, output: Any) -> Any:
        """The hook."""
        return self.box.deferred(output) if self.box.waiting or self.box.told else None


@dataclass(eq=False)
class Factors(_Forgetful):
    """The two layers of a gated unit, a(z1) b(z2): each one's slope holds the other's value."""

    gates: tuple[Gate, Gate]
    same: bool = False  # whether both layers are given the same tensor
    waiting: dict[int, Any] = field(default_factory=dict)
    # By the second layer's number: the first's value and slope, if a checkpoint will ask for them.
    told: dict[int, Any] = field(default_factory=dict)

    def meet(self, which: int, x: Any, z: torch.Tensor, handle: torch.Tensor) -> torch.Tensor:
        """Keep what the other layer will need; if that one was first, tell both."""
        value, slope = _value_and_slope(self.gates[which], z.detach())
        other = self.waiting.pop(1 - which, None)
        if other is not None and (other[1].shape != z.shape or (self.same and other[3] is not x)):
            other = None  # left behind by another pass, see `Box.deferred`
        recomputing, segment = _recomputing(), _segment()
        if other is None and recomputing and which in self.told:
            if self.told[which][0].shape == z.shape:
                other = (_dummy(z), *self.told[which], x, None)
        if other is None:
            self.waiting[which] = (handle, value, slope, x, segment)
            return z
        other_probe, other_value, other_slope, _, other_segment = other
        if not recomputing and segment is not None and segment != other_segment:
            self.told[which] = (other_value, other_slope)
        z = tell_gate(z, handle, slope=slope * other_value)
        return tell_gate(z, other_probe, slope=other_slope * value)


def _value_and_slope(gate: Gate, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both at least float32, and not z's memory, which may be overwritten."""
    slope = gate_slope(gate, z)
    phi = resolve_gate(gate)
    z = z.to(torch.promote_types(z.dtype, torch.float32), copy=True)
    if slope is None:
        return z, torch.ones_like(z)
    return without_hooks(phi)(z), slope


@dataclass(eq=False)
class TakeFactor:
    """Forward hook of either layer of a gated unit: returns z, as PyTorch does."""

    factors: Factors
    which: int

    def __call__(self, module: Any, args: Any, output: Any) -> torch.Tensor:
        """The hook."""
        z, handle = output
        if not torch.is_grad_enabled():
            return z
        return self.factors.meet(self.which, args[0] if args else None, z, handle)


@dataclass(eq=False)
class Afresh:
    """Forward pre-hook of the whole model: forgets what a pass that broke off left behind."""

    boxes: list[Any]

    def __call__(self, module: Any, args: Any) -> None:
        """The hook."""
        for box in self.boxes:
            box.waiting.clear()
            # A pass without gradients may come between a pass and its backward pass.
            if torch.is_grad_enabled() and not torch.compiler.is_compiling():
                box.told.clear()


HOOKS = (TakeHandle, TellInput, TellOutput, TakeFactor, Afresh)
