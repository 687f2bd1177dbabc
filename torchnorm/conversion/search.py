"""From a recorded forward pass: which activation a layer's output meets, and where."""

from collections.abc import Callable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import torch
from torch import nn

from torchnorm.activations import JointGate
from torchnorm.conversion.alterations import Witness
from torchnorm.conversion.choices import why_not_as_called
from torchnorm.conversion.consumers import no_activation
from torchnorm.conversion.decisions import (
    Decision,
    Deferred,
    Direct,
    Factor,
    Left,
    Product,
    Transport,
)
from torchnorm.conversion.elementwise import (
    DROPOUTS,
    ELEMENTWISE,
    NORMALIZATIONS,
    PERMUTATIONS,
    PRODUCTS,
    SEEN_AFTER,
    SUMS,
    VIEWS,
)
from torchnorm.conversion.extract import Replay, Step, recognize
from torchnorm.conversion.region import Region, find_region, is_nonlinear, only_user, users
from torchnorm.conversion.report import gate_name
from torchnorm.conversion.trace import Call, Op, Tape, Value
from torchnorm.modules.registry import is_layer


@dataclass
class _Path:
    """How far a layer's output has been followed."""

    layer: Call
    now: Value
    steps: list[Step] = field(default_factory=list)  # elementwise, affine, since z
    count: int = 1  # values that the steps have made, z among them
    joint: bool = False  # the steps split or pool
    activated: bool = False  # an activation was found
    mixed: bool = False  # normalized, or summed with something else
    layout: tuple = ()  # permutations and "reshape" since z
    same: list[tuple[Value, tuple]] = field(default_factory=list)  # as now, each in its layout
    visited: list[Value] = field(default_factory=list)
    witnesses: list[Witness] = field(default_factory=list)  # what the gate was taken from

    def move(self, value: Value, *, same: bool = False) -> None:
        self.now = value
        self.visited.append(value)
        self.same = [*(self.same if same else ()), (value, self.layout)]

    def mix(self, value: Value) -> None:
        self.mixed, self.steps, self.count = True, [], 1
        self.move(value)


def search(
    model: nn.Module, tapes: list[Tape], layers: dict[str, nn.Module]
) -> dict[str, Decision]:
    """What the output of each layer meets, by the layer's name.

    Args:
        model: what was watched.
        tapes: the recorded passes; of each layer, the first one that called it counts.
        layers: by name.
    """
    holds = {parent for parent in model.modules() if any(is_layer(m) for m in parent.modules())}
    holds |= {m for m in model.modules() if any(p.ndim > 1 for p in m.parameters())}
    decisions: dict[str, Decision] = {}
    products: dict[Op, dict[str, Factor]] = {}
    for name, layer in layers.items():
        tape = next((tape for tape in tapes if layer in tape.calls), None)
        reason = why_not_as_called(tape, layer)
        if reason is not None or tape is None:
            decisions[name] = Left(reason or "")
            continue
        found = follow(tape, tape.calls[layer][0], lambda module: module not in holds)
        if isinstance(found, Factor):
            products.setdefault(found.operation, {})[name] = found
        decisions[name] = found.otherwise if isinstance(found, Factor) else found
    for factors in products.values():
        if len(factors) == 2 and Factor.fits(*factors.values()):
            factors = dict(sorted(factors.items()))
            for name in factors:
                witnesses = decisions[name].witnesses
                decisions[name] = Product(factors, name)
                decisions[name].witnesses = witnesses
    return decisions


def follow(tape: Tape, layer: Call, opaque: Callable[[nn.Module], bool]) -> Decision | Factor:
    """What the output of one call of a layer meets.

    Args:
        tape: the recorded pass.
        layer: the call.
        opaque: whether a module holds no layer, so that it may be taken as one operation.
    """
    path = _Path(layer, layer.outs[0])
    path.move(path.now)
    found = _follow(tape, path, opaque)
    decision = found.otherwise if isinstance(found, Factor) else found
    decision.witnesses = path.witnesses if path.activated else []
    if not (path.activated or decision.unresolved):
        decision.witnesses = _idle(path)
    if isinstance(found, Factor):
        behind = _Path(layer, found.operation.outs[0], mixed=True)
        behind.move(behind.now)
        _follow(tape, behind, opaque)
        if behind.activated:  # which decides how much the product counts
            return found.otherwise
    return found


def _follow(tape: Tape, path: _Path, opaque: Callable[[nn.Module], bool]) -> Decision | Factor:
    while True:
        op = only_user(path.now)
        if op is not None and (_lays_out(path, op) or op.name in DROPOUTS):
            path.move(op.outs[0], same=True)
            continue
        call = _module_activation(tape, path.now, opaque)
        if call is not None and path.joint:
            reason = f"{type(call.module).__name__} follows behind {Replay(tuple(path.steps))}"
            return Direct(None, reason, unresolved=True)
        if call is not None:
            path.mixed = path.mixed or bool(path.steps)  # then it sees another tensor than z
            path.witnesses.append(Witness(call.name, "", type(call.module), call.module))
            path.witnesses[-1].remember(call.module)
            return _activation(tape, path, call.outs[0], call.module)
        region = find_region(
            path.now,
            path.count,
            joint=path.joint,
            laid_out=bool(path.layout),
            spatial=isinstance(path.layer.module, nn.modules.conv._ConvNd),
        )
        if region is not None and region.nonlinear:
            gate = _gate(path, region, opaque)
            path.witnesses += _witnesses(region, gate, opaque)
            return _activation(tape, path, region.end, gate)
        calls = _taken(path.now, opaque)
        if region is not None and path.mixed:
            if region.joint:
                return no_activation(tape, path.now)
            path.mix(region.end)
        elif region is not None:
            path.steps, path.count = path.steps + region.steps, region.count
            path.joint = region.joint
            path.move(region.end)
        elif path.joint:
            return no_activation(tape, path.now)
        elif op is not None and _mixes(op, path.now):
            path.mix(op.outs[0])
        elif op is not None and _multiplies(op) and not path.mixed and not path.steps:
            reason = "multiplied by a tensor that is no layer's output, or activated after that"
            otherwise = Direct(None, reason, unresolved=True)
            return Factor(path.layer, None, op, path.now, path.layout, otherwise)
        elif calls:
            path.mix(calls[-1].outs[0])
        else:
            return no_activation(tape, path.now)


def _lays_out(path: _Path, op: Op) -> bool:
    """Whether the operation changes the layout only, which is noted."""
    name, out = op.name, op.outs[0]
    if name not in VIEWS or out.numel != path.now.numel or path.joint:
        return False
    if name in PERMUTATIONS:
        # The axes, whatever the function's arguments are called: from sizes that tell them apart.
        sizes = torch.empty(tuple(range(2, 2 + len(path.now.shape))), device="meta")
        axes = tuple(size - 2 for size in op.func(sizes, *op.args[1:], **op.kwargs).shape)
        if path.layout and path.layout[-1] != "reshape":
            axes = tuple(path.layout[-1][axis] for axis in axes)
            path.layout = path.layout[:-1]
        path.layout = (*path.layout, axes)
    elif out.shape != path.now.shape and path.layout[-1:] != ("reshape",):
        path.layout = (*path.layout, "reshape")
    return True


def _transport(layout: tuple) -> Transport | None:
    """The same as what is applied to a handle, if it can be done for any batch."""
    if layout.count("reshape") > 1:
        return None
    if "reshape" not in layout:
        return Transport(before=layout[0]) if layout else Transport()
    place = layout.index("reshape")
    before, after = layout[:place], layout[place + 1 :]
    return Transport((before or ((),))[0], True, (after or ((),))[0])


def _taken(value: Value, opaque: Callable[[nn.Module], bool]) -> list[Call]:
    """Calls of modules without layers, outermost first, that map this value alone to another."""
    return [
        call
        for call in value.given_to
        if opaque(call.module)
        and call.whole
        and set(call.ins) == {value}
        and call.outs[0] is not value
        and call.outs[0].shape == value.shape
        and not value.is_output
        and all(call in op.stack for op in users(value))
    ]


def _module_activation(
    tape: Tape, value: Value, opaque: Callable[[nn.Module], bool]
) -> Call | None:
    """A module with parameters or buffers of its own that acts elementwise (PReLU)."""
    for call in reversed(_taken(value, opaque)):
        module = call.module
        if next(module.parameters(), None) is None and next(module.buffers(), None) is None:
            continue
        depends, nonlinear = {value}, False
        for op in tape.ops:
            if not call.start < op.index < call.end or not depends & set(op.ins):
                continue
            name = op.name
            if name not in ELEMENTWISE or op.outs[0].shape != value.shape:
                break
            nonlinear |= is_nonlinear(op, depends)
            depends |= set(op.outs)
        else:
            if nonlinear and call.outs[0] in depends:
                return call
    return None


def _mixes(op: Op, value: Value) -> bool:
    """Whether the operation normalizes, or adds something: of the same shape, no activation."""
    name = op.name
    if op.outs[0].shape != value.shape or not op.ins:
        return False
    others = [other for other in op.ins if other is not value]
    constant = all(other.maker is None or not other.live for other in others)
    if name in NORMALIZATIONS:
        return op.ins[0] is value
    return name in SUMS or (name in PRODUCTS and bool(others) and constant)


def _multiplies(op: Op) -> bool:
    """Whether the operation is a product of two tensors of the same shape."""
    factors = set(op.ins)
    shapes = {value.shape for value in factors} | {op.outs[0].shape}
    name = op.name
    if name not in PRODUCTS or "div" in name or len(factors) != 2:
        return False
    return len(shapes) == 1 and all(value.live for value in factors)


def _gate(path: _Path, region: Region, opaque: Callable[[nn.Module], bool]) -> Any:
    """What to call the activation: by name, else the module that is it, else the operations."""
    replay = Replay((*path.steps, *region.steps))
    if region.joint:
        return "glu" if replay.__name__ in ("glu", "glu(-1)", "glu(dim=-1)") else JointGate(replay)
    name = recognize(replay)
    if name is not None:
        return name
    random = any(step.name == "rrelu" for step in replay.steps)
    for call in reversed(_taken(path.now, opaque)):
        if call.outs[0] is region.end and not path.steps and not random:
            return call.module
    return replay


def _witnesses(region: Region, gate: Any, opaque: Callable[[nn.Module], bool]) -> list[Witness]:
    """The modules, or the functions in attributes of modules, that ran the operations."""
    found: dict[tuple[str, str], Witness] = {}
    for op in region.ops:
        call = op.stack[-1] if op.stack else None
        if call is None:
            continue
        if opaque(call.module):
            within = [outer for outer in op.stack if outer.module is gate]
            place = (within or [call])[0]
            itself = place.module if place.module is gate else None
            witness = Witness(place.name, "", type(place.module), itself)
            witness.remember(place.module)
            found.setdefault((witness.name, ""), witness)
            continue
        for attribute, value in vars(call.module).items():
            if value is op.func:
                witness = Witness(call.name, attribute, value, None)
                witness.remember(value)
                found.setdefault((witness.name, attribute), witness)
    return list(found.values())


def _idle(path: _Path) -> list[Witness]:
    """Modules that do nothing, in whose place an activation may be put."""
    found = []
    for value in path.visited:
        for call in value.given_to:
            if type(call.module) is nn.Identity and call.outs == [value]:
                found.append(Witness(call.name, "", nn.Identity, None))
                found[-1].remember(call.module)
    return found


def _activation(tape: Tape, path: _Path, end: Value, gate: Any) -> Decision | Factor:
    """The gate, given to the layer where that is enough."""
    path.activated = True
    several = isinstance(gate, nn.Module) and any(p.numel() > 1 for p in gate.parameters())
    if path.mixed or several:
        reason = f"{gate_name(gate)} sees a sum or a normalization that no module takes or returns"
        found = _deferred(tape, path, end, gate)
        return Direct(None, reason, unresolved=True) if found is None else found
    joint = isinstance(gate, JointGate) or gate == "glu"
    direct = Direct(gate, "joint" if joint else "direct")
    if joint or path.steps:
        return direct
    path.move(end)
    while True:
        op = only_user(path.now)
        if op is not None and _multiplies(op):
            otherwise = Direct(gate, "direct; what it returns is multiplied by another tensor")
            return Factor(path.layer, gate, op, path.now, path.layout, otherwise)
        if op is None or not (_lays_out(path, op) or op.name in DROPOUTS):
            return direct
        path.move(op.outs[0])


def _deferred(tape: Tape, path: _Path, end: Value, gate: Any) -> Deferred | None:
    """A module that returns, or is first given, what the activation is applied to."""
    options = [
        (call, "output", layout)
        for value, layout in reversed(path.same)
        for call in value.returned_by
    ]
    if not _still_used(path.now, end):
        options += [(call, "input", path.layout) for call in path.now.given_to]
    if gate in SEEN_AFTER:
        returned = [end, *(op.outs[0] for op in end.users if op.name == "view_as")]
        options += [(c, "output", path.layout) for value in returned for c in value.returned_by]
        options += [(c, "input", path.layout) for value in returned for c in value.given_to]
    known = [v for v, _ in path.same] + [end, *(op.outs[0] for op in end.users if op.outs)]
    for call, side, layout in options:
        returns, transport = side == "output", _transport(layout)
        value = call.outs[0] if returns else call.first
        in_place = returns and any(v.thing == call.outs[0].thing for v in call.ins)
        if (returns and not call.whole) or (in_place and _still_used(path.now, end)):
            continue
        if call is path.layer or transport is None or value not in known:
            continue
        if returns and call.module is gate:
            continue
        when = attrgetter("end" if returns else "start")
        calls = [c for c in tape.calls[call.module] if path.layer.end < when(c) <= when(call)]
        if calls:
            where = call.name or "the model"
            reason = f"deferred to {'' if returns else 'the input of '}{where}"
            return Deferred(gate, call, side, transport, len(calls), reason)
    return None


def _still_used(u: Value, end: Value) -> bool:
    """Whether somebody goes on with the tensor that an activation has overwritten.

    A deferred tensor is another object, so what is done to it in place is not done to the first.
    """
    if end.thing != u.thing:
        return False
    return end.is_output or any(op.name != "view_as" for op in end.users) or len(end.users) != 1
