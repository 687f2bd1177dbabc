"""The activation that a followed output meets, and what it was taken from."""

from collections.abc import Callable
from typing import Any

from torch import nn

from torchnorm.activations import JointGate
from torchnorm.conversion.alterations import Witness
from torchnorm.conversion.elementwise import ELEMENTWISE
from torchnorm.conversion.extract import Replay, recognize
from torchnorm.conversion.path import Path
from torchnorm.conversion.region import Region, is_nonlinear
from torchnorm.conversion.trace import Call, Tape
from torchnorm.normalizers.registry import NORMALIZERS


def taken(path: Path, opaque: Callable[[nn.Module], bool]) -> list[Call]:
    """Calls of modules without layers, outermost first, that map this value alone to another."""
    value = path.now
    return [
        call
        for call in value.given_to
        if opaque(call.module)
        and call.whole
        and set(call.ins) == {value}
        and call.outs[0] is not value
        and call.outs[0].shape == value.shape
        and (path.only is not None or not value.is_output)
        and all(call in op.stack for op in path.users())
    ]


def normalizing(path: Path, opaque: Callable[[nn.Module], bool]) -> Call | None:
    """A call of one of our normalizers, whatever operations it is made of."""
    calls = (call for call in taken(path, opaque) if isinstance(call.module, NORMALIZERS))
    return next(calls, None)


def module_activation(tape: Tape, path: Path, opaque: Callable[[nn.Module], bool]) -> Call | None:
    """A module with parameters or buffers of its own that acts elementwise (PReLU)."""
    for call in reversed(taken(path, opaque)):
        module = call.module
        if next(module.parameters(), None) is None and next(module.buffers(), None) is None:
            continue
        value = path.now
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


def gate_of(path: Path, region: Region, opaque: Callable[[nn.Module], bool]) -> Any:
    """What to call the activation: by name, else the module that is it, else the operations."""
    replay = Replay((*path.steps, *region.steps))
    if region.joint:
        return "glu" if replay.__name__ in ("glu", "glu(-1)", "glu(dim=-1)") else JointGate(replay)
    name = recognize(replay)
    if name is not None:
        return name
    random = any(step.name == "rrelu" for step in replay.steps)
    for call in reversed(taken(path, opaque)):
        if call.outs[0] is region.end and not path.steps and not random:
            return call.module
    return replay


def witnesses_of(region: Region, gate: Any, opaque: Callable[[nn.Module], bool]) -> list[Witness]:
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


def idle(path: Path) -> list[Witness]:
    """Modules that do nothing, in whose place an activation may be put."""
    found = []
    for value in path.visited:
        for call in value.given_to:
            if type(call.module) is nn.Identity and call.outs == [value]:
                found.append(Witness(call.name, "", nn.Identity, None))
                found[-1].remember(call.module)
    return found
