"""Where a layer is told its gate: at a module that returns, or is given, what it is applied to."""

from operator import attrgetter
from typing import Any

from torchnorm.conversion.decisions import Deferred
from torchnorm.conversion.elementwise import SEEN_AFTER
from torchnorm.conversion.moves import transport
from torchnorm.conversion.path import Path
from torchnorm.conversion.trace import Call, Tape, Value


def deferred(tape: Tape, path: Path, end: Value, gate: Any) -> Deferred | None:
    """A module that returns, or is first given, what the activation is applied to."""
    options = [
        (call, "output", moves)
        for value, moves in reversed(path.same)
        for call in value.returned_by
    ]
    if not _still_used(path.now, end):
        options += [(call, "input", path.moves) for call in path.now.given_to if _holds(call, path)]
    if gate in SEEN_AFTER:
        returned = [end, *(op.outs[0] for op in end.users if op.name == "view_as")]
        options += [(c, "output", path.moves) for value in returned for c in value.returned_by]
        options += [(c, "input", path.moves) for value in returned for c in value.given_to]
    known = [v for v, _ in path.same] + [end, *(op.outs[0] for op in end.users if op.outs)]
    for call, side, moves in options:
        returns, moved = side == "output", transport(moves)
        value = call.outs[0] if returns else call.first
        in_place = returns and any(v.thing == call.outs[0].thing for v in call.ins)
        if (returns and not call.whole) or (in_place and _still_used(path.now, end)):
            continue
        if call is path.layer or moved is None or value not in known:
            continue
        if returns and call.module is gate:
            continue
        when = attrgetter("end" if returns else "start")
        calls = [c for c in tape.calls[call.module] if path.layer.end < when(c) <= when(call)]
        if calls:
            where = call.name or "the model"
            reason = f"deferred to {'' if returns else 'the input of '}{where}"
            return Deferred(gate, call, side, moved, len(calls), reason)
    return None


def _holds(call: Call, path: Path) -> bool:
    """Whether a call runs what the path is about, of several that consume a value."""
    return path.only is None or all(call in op.stack for op in path.only)


def _still_used(u: Value, end: Value) -> bool:
    """Whether somebody goes on with the tensor that an activation has overwritten.

    A deferred tensor is another object, so what is done to it in place is not done to the first.
    """
    if end.thing != u.thing:
        return False
    return end.is_output or any(op.name != "view_as" for op in end.users) or len(end.users) != 1
