"""Hooks that carry a layer's handle to the place where its activation is seen.

Instances of these classes, and nothing else, hang on a converted model's modules; they refer to one
another but to no module, so that a copied or pickled model has its own.
"""

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from torchnorm.activations import Gate, gate_slope, resolve_gate, without_hooks
from torchnorm.backward.deferred import tell_gate
from torchnorm.compat import hook_on_saved_tensors
from torchnorm.conversion.alterations import Alterations, Wire, warn
from torchnorm.conversion.decisions import Decision, Deferred, Direct, Factor, Product, Several
from torchnorm.conversion.moves import Transport


class Handover:
    """Handles on their way from layers to the place that knows the slope.

    They belong to a forward pass, not to a copy of the model.

    Attributes:
        names: of the layers, by their numbers.
        waiting: what waits, by the layer's number; its last entry says whether that it is never
            told means something.
        reported: the layers of which it was said that nobody told them.
    """

    names: list[str]
    waiting: dict[int, Any]
    told: Any
    reported: set[int]

    def __getstate__(self) -> dict:
        return {**vars(self), "waiting": {}, "told": type(self.told)()}

    def place(self, number: int) -> str:
        """Where a layer is told its gate, in words."""
        raise NotImplementedError

    def known(self, changed: set[str]) -> None:
        """Say no more of layers of which it was said that they, or their activation, changed."""
        if changed:
            self.reported.update(n for n, name in enumerate(self.names) if name in changed)

    def untold(self, waiting: dict[int, Any]) -> list[tuple[str, str, str]]:
        """Of these entries, which nobody will tell any more, the problems that are new."""
        lost = [
            number
            for number, entry in waiting.items()
            if entry[-1] and number not in self.reported and not torch.compiler.is_compiling()
        ]
        self.reported.update(lost)
        return [
            (
                f"gate of {self.names[number]!r}",
                "no word of what its activation sees",
                f"it {self.place(number)}",
            )
            for number in lost
        ]


def _recomputing() -> bool:
    """Whether this is a checkpoint's second forward pass, within the backward pass.

    Without `use_reentrant` it has to save as many tensors as the first one did, though layers
    outside of the checkpoint do not run again: what they were told is told to a dummy then.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _means_something() -> bool:
    """Whether it is an error that a handle of this pass is never told.

    The second pass of a checkpoint without `use_reentrant` makes handles that nobody asks for.
    """
    return not _recomputing() or hook_on_saved_tensors() is None


def _segment() -> object | None:
    """Which checkpoint without `use_reentrant`, or other hook on what is saved, is active."""
    return None if torch.compiler.is_compiling() else hook_on_saved_tensors()


def _dummy(u: torch.Tensor) -> torch.Tensor:
    dtype = torch.promote_types(u.dtype, torch.float32)
    return torch.zeros((), dtype=dtype, device=u.device, requires_grad=True).expand(u.shape)


@dataclass
class Seat:
    """Where one layer's activation is seen: at which call of the module, how, and by which gate."""

    gate: Gate
    transport: Transport
    calls: int  # 1: the first call of the module after the layer
    place: str = ""  # in words


@dataclass(eq=False)
class ModuleHandover(Handover):
    """Handles that wait for a module to be called; shared by the layers and that module."""

    names: list[str] = field(default_factory=list)
    seats: list[Seat] = field(default_factory=list)
    waiting: dict[int, Any] = field(default_factory=dict)
    told: set[tuple[int, ...]] = field(default_factory=set)  # the seats, by each call of the module
    reported: set[int] = field(default_factory=set)

    def place(self, number: int) -> str:
        """Where a layer is told its gate, in words."""
        return self.seats[number].place

    def take(self, number: int, x: Any, z: torch.Tensor, handle: torch.Tensor) -> torch.Tensor:
        """Keep the handle until the module is called."""
        seat = self.seats[number]
        value = z.detach() if seat.transport.needs_value else None
        entry = (handle, value, seat.calls, _means_something())
        if not torch.compiler.is_compiling() and number in self.waiting:
            warn(self.untold({number: self.waiting[number]}))
        self.waiting[number] = entry
        return z

    def tell(self, u: torch.Tensor) -> torch.Tensor:
        """Tell u's gate to the handles that wait for it; returns u."""
        # All are taken out first: the gate may be, or hold, a module that tells these handles.
        found, dropped = {}, {}
        for index, entry in [(i, self.waiting.pop(i)) for i in list(self.waiting)]:
            handle, value, calls, matters = entry
            if calls > 1:
                self.waiting[index] = (handle, value, calls - 1, matters)
                continue
            # One that a pass left behind (it broke off, it was of a part of the model, it was the
            # recomputation of a checkpoint) is dropped.
            moved = None
            if torch.is_grad_enabled() and _upstream(handle, u):
                moved = self.seats[index].transport(handle, u, value)
            if moved is not None:
                found[index] = moved
            elif handle.requires_grad:
                dropped[index] = entry
        if not torch.compiler.is_compiling():
            warn(self.untold(dropped))
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            if not _recomputing():
                self.told.add(tuple(found))
            elif len(self.told) == 1:  # else it is not known which of the calls this one is
                (seats,) = self.told
                found = {index: found.get(index, None) for index in seats}
        slopes: dict[int, Any] = {}  # of several layers, one
        for index, handle in found.items():
            gate = self.seats[index].gate
            if id(gate) not in slopes:
                slopes[id(gate)] = gate_slope(gate, u.detach())
            told = {"gate": gate} if slopes[id(gate)] is None else {"slope": slopes[id(gate)]}
            u = tell_gate(u, _dummy(u) if handle is None else handle, **told)
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
class ProductHandover(Handover):
    """The two layers of a gated unit, a(z1) b(z2): each one's slope holds the other's value."""

    gates: tuple[Gate, Gate]
    names: list[str]
    same: bool = False  # whether both layers are given the same tensor
    waiting: dict[int, Any] = field(default_factory=dict)
    # By the second layer's number: the first's value and slope, if a checkpoint will ask for them.
    told: dict[int, Any] = field(default_factory=dict)
    reported: set[int] = field(default_factory=set)

    def place(self, number: int) -> str:
        """Where a layer is told its gate, in words."""
        return f"from {self.names[1 - number]!r}, which it is gated with"

    def known(self, changed: set[str]) -> None:
        """Say no more of either layer."""
        if changed & {*self.names}:
            self.reported.update((0, 1))

    def take(self, number: int, x: Any, z: torch.Tensor, handle: torch.Tensor) -> torch.Tensor:
        """Keep what the other layer will need; if that one was first, tell both."""
        value, slope = _value_and_slope(self.gates[number], z.detach())
        other = self.waiting.pop(1 - number, None)
        if not torch.compiler.is_compiling() and number in self.waiting:
            warn(self.untold({number: self.waiting[number]}))
        if other is not None and (other[1].shape != z.shape or (self.same and other[3] is not x)):
            # Left behind by another pass, see `ModuleHandover.tell`.
            if not torch.compiler.is_compiling():
                warn(self.untold({1 - number: other}))
            other = None
        recomputing, segment = _recomputing(), _segment()
        if other is None and recomputing and number in self.told:
            if self.told[number][0].shape == z.shape:
                other = (_dummy(z), *self.told[number], x, None, False)
        if other is None:
            self.waiting[number] = (handle, value, slope, x, segment, _means_something())
            return z
        other_handle, other_value, other_slope, _, other_segment, _ = other
        if not recomputing and segment is not None and segment != other_segment:
            self.told[number] = (other_value, other_slope)
        z = tell_gate(z, handle, slope=slope * other_value)
        return tell_gate(z, other_handle, slope=other_slope * value)


def _value_and_slope(gate: Gate, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both at least float32, and not z's memory, which may be overwritten."""
    slope = gate_slope(gate, z)
    phi = resolve_gate(gate)
    z = z.to(torch.promote_types(z.dtype, torch.float32), copy=True)
    if slope is None:
        return z, torch.ones_like(z)
    return without_hooks(phi)(z), slope


@dataclass(eq=False)
class TakeHandle:
    """Forward hook of a deferred layer: hands its handle over and returns z, as PyTorch does.

    Attributes:
        places: where the handle goes, and the layer's number there.
        gates: of activations that see z itself, beside those that are told later.
    """

    places: list[tuple[ModuleHandover | ProductHandover, int]]
    gates: list[Gate] = field(default_factory=list)

    def __call__(self, module: Any, args: Any, output: Any) -> torch.Tensor:
        """The hook."""
        z, handle = output
        if not torch.is_grad_enabled():
            return z
        for handover, number in self.places:
            z = handover.take(number, args[0] if args else None, z, handle)
        for gate in self.gates:
            z = tell_gate(z, handle, gate)
        return z


@dataclass(eq=False)
class TellInput:
    """Forward pre-hook: the module's first tensor is what the activation sees."""

    handover: ModuleHandover

    def __call__(self, module: Any, args: tuple, kwargs: dict) -> Any:
        """The hook."""
        if not (self.handover.waiting or self.handover.told):
            return None
        if args:
            if not isinstance(args[0], torch.Tensor):
                return None
            return (self.handover.tell(args[0]), *args[1:]), kwargs
        given = (name for name, value in kwargs.items() if isinstance(value, torch.Tensor))
        name = next(given, None)
        if name is None:
            return None
        return args, {**kwargs, name: self.handover.tell(kwargs[name])}


@dataclass(eq=False)
class TellOutput:
    """Forward hook: what the module returns is what the activation sees."""

    handover: ModuleHandover

    def __call__(self, module: Any, args: Any, output: Any) -> Any:
        """The hook."""
        if not (self.handover.waiting or self.handover.told):
            return None
        # (What has taken the module's place may return something else.)
        return self.handover.tell(output) if isinstance(output, torch.Tensor) else None


@dataclass(eq=False)
class Afresh:
    """Forward pre-hook of the whole model: looks after it, and forgets a pass that broke off."""

    handovers: list[Handover]
    alterations: Alterations
    running: bool = False  # whether a pass has begun and not ended

    def __call__(self, module: Any, args: Any) -> None:
        """The hook."""
        if not torch.compiler.is_compiling() and not self.running:
            _drop(self.handovers)
        for handover in self.handovers:
            handover.waiting.clear()
        # A pass without gradients may come between a pass and its backward pass.
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return
        self.running = True
        self.alterations.look(module)
        for handover in self.handovers:
            handover.told.clear()
            handover.known(self.alterations.changed)

    def __getstate__(self) -> dict:
        return {**vars(self), "running": False}


@dataclass(eq=False)
class Finish:
    """Forward hook of the whole model: tells of handles that nobody has told."""

    afresh: Afresh

    def __call__(self, module: Any, args: Any, output: Any) -> None:
        """The hook."""
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            self.afresh.running = False
            _drop(self.afresh.handovers)


def _drop(handovers: list[Handover]) -> None:
    """Forget what waits; it keeps the graph of a pass alive."""
    waiting = [handover for handover in handovers if handover.waiting]
    warn([problem for each in waiting for problem in each.untold(each.waiting)])
    for handover in waiting:
        handover.waiting.clear()


def wire(model: nn.Module, decisions: Mapping[str, Decision]) -> None:
    """Register the hooks of a model whose layers of these names are converted."""
    handovers: dict[Any, Any] = {}
    alterations, wires = Alterations(), {}
    for name, decision in decisions.items():
        alterations.add(decision.witnesses, name)
        alterations.layers[name] = weakref.ref(model.get_submodule(name))
        places: list[Any] = []
        parts = decision.parts if isinstance(decision, Several) else [decision]
        for part in (each for each in parts if isinstance(each, Deferred)):
            call, side = part.module, part.side
            place = (call.module, side)
            if place not in handovers:
                handovers[place] = ModuleHandover()
                hook = (TellInput if side == "input" else TellOutput)(handovers[place])
                wires[place] = Wire(call.name, hook, side == "input", [])
            wires[place].layers.append(name)
            handover = handovers[place]
            places.append((handover, len(handover.seats)))
            where = f"at {'the input of ' * (side == 'input')}{call.name or 'the model'!r}"
            handover.seats.append(Seat(part.gate, part.transport, part.calls, where))
            handover.names.append(name)
        if isinstance(decision, Product):
            pair = tuple(decision.factors)
            if pair not in handovers:
                handovers[pair] = _product_of(pair, *decision.factors.values())
            places.append((handovers[pair], pair.index(name)))
        if decision.deferred:
            seen = [part.gate for part in parts if isinstance(part, Direct)]
            # Before the model's hooks, which expect what PyTorch returns.
            wires[name] = Wire(name, TakeHandle(places, seen), False, [name])
    alterations.wires = list(wires.values())
    for each in alterations.wires:
        each.hang(model.get_submodule(each.name))
    # (With any hook on it, PyTorch would not take its fused path for inference.)
    alone = isinstance(model, nn.TransformerEncoderLayer) and not wires
    if (wires or any(decisions)) and not alone:
        afresh = Afresh(list(handovers.values()), alterations)
        model.register_forward_pre_hook(afresh, prepend=True)
        if handovers:
            model.register_forward_hook(Finish(afresh))


def _product_of(names: tuple[str, ...], first: Factor, second: Factor) -> ProductHandover:
    # (A hook of the user may give one of them something else.)
    hooked = any(factor.layer.module._forward_pre_hooks for factor in (first, second))
    same = first.layer.first is second.layer.first and not hooked
    return ProductHandover((first.gate, second.gate), list(names), same)


def unwire(model: nn.Module) -> bool:
    """Remove all hooks of ours from a model; whether there was one."""
    found = False
    for module in model.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key in [key for key, hook in hooks.items() if isinstance(hook, _HOOKS)]:
                found = True
                del hooks[key]
                module._forward_pre_hooks_with_kwargs.pop(key, None)
    return found


_HOOKS = (TakeHandle, TellInput, TellOutput, Afresh, Finish)
