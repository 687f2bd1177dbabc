"""From a recorded forward pass: which activation a layer's output meets, and where."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from torchnorm.activations import JointGate
from torchnorm.compat import with_data
from torchnorm.conversion.activation import (
    gate_of,
    idle,
    module_activation,
    normalizing,
    taken,
    witnesses_of,
)
from torchnorm.conversion.alterations import Witness
from torchnorm.conversion.choices import why_not_as_called
from torchnorm.conversion.consumers import no_activation, unknown, unknown_behind, unknown_within
from torchnorm.conversion.decisions import (
    Decision,
    Deferred,
    Direct,
    Factor,
    Left,
    Product,
    Several,
)
from torchnorm.conversion.deferral import deferred
from torchnorm.conversion.elementwise import DROPOUTS, NORMALIZATIONS, PRODUCTS, REDUCTIONS, SUMS
from torchnorm.conversion.extract import Replay, Sum, has_slope
from torchnorm.conversion.moves import all_entries, layout_move, other_moves
from torchnorm.conversion.path import Path, in_module
from torchnorm.conversion.region import find_region, groups, users
from torchnorm.conversion.report import gate_name
from torchnorm.conversion.trace import Call, Op, Tape, Value
from torchnorm.modules.registry import is_layer
from torchnorm.normalizers.registry import NORMALIZERS

Opaque = Callable[[nn.Module], bool]
#: So many ways from one output are followed.
_MOST = 1000


def search(
    model: nn.Module, tapes: list[Tape], layers: dict[str, nn.Module], *, recorded: bool = True
) -> dict[str, Decision]:
    """What the output of each layer meets, by the layer's name.

    Args:
        model: what was watched.
        tapes: the recorded passes; of each layer, the first one that called it counts.
        layers: by name.
        recorded: whether the statistics are recorded, and so add up over the calls of a layer.
    """
    opaque = opaque_in(model)
    decisions: dict[str, Decision] = {}
    products: dict[Op, dict[str, Factor]] = {}
    for name, layer in layers.items():
        tape = next((tape for tape in tapes if layer in tape.calls), None)
        reason = why_not_as_called(tape, layer, recorded=recorded)
        if reason is not None or tape is None:
            decisions[name] = Left(reason or "")
            continue
        with with_data():
            each = [follow(tape, call, opaque) for call in tape.calls[layer]]
        found = each[0] if len(each) == 1 else _of_calls(each)
        if isinstance(found, Factor):
            products.setdefault(found.operation, {})[name] = found
        decisions[name] = found.otherwise if isinstance(found, Factor) else found
    for factors in products.values():
        if len(factors) == 2 and Factor.fits(*factors.values()):
            factors = dict(sorted(factors.items()))
            for name in factors:
                before = decisions[name]
                decisions[name] = Product(factors, name)
                decisions[name].witnesses, decisions[name].way = before.witnesses, before.way
    return decisions


def opaque_in(model: nn.Module) -> Opaque:
    """Whether a module of the model holds no layer, so that it may be taken as one operation."""
    holds = {parent for parent in model.modules() if any(is_layer(m) for m in parent.modules())}
    holds |= {m for m in model.modules() if any(map(_has_matrix, m.modules()))}
    return lambda module: module not in holds


def _has_matrix(module: nn.Module) -> bool:
    """Whether it may be a layer of any kind: no normalizer is, whatever it mixes."""
    if isinstance(module, NORMALIZERS):
        return False
    return any(p.ndim > 1 for p in module.parameters(recurse=False))


def follow(tape: Tape, layer: Call, opaque: Opaque) -> Decision | Factor:
    """What the output of one call of a layer meets.

    Args:
        tape: the recorded pass.
        layer: the call.
        opaque: whether a module holds no layer, so that it may be taken as one operation.
    """
    start = Path(layer, layer.outs[0])
    start.say("its output", start.now)
    start.move(start.now)
    ends, lines = _ends(tape, start, opaque)
    path, found = ends[0]
    if len(ends) > 1:
        found = _together(tape, layer, ends)
    elif found is None:
        found = no_activation(tape, layer.outs[0])
    decision = found.otherwise if isinstance(found, Factor) else found
    decision.way = lines
    activated = [each for each, _ in ends if each.activated]
    decision.witnesses = [witness for each in activated for witness in each.witnesses]
    if not (activated or decision.unresolved):
        decision.witnesses = idle(path)
    if isinstance(found, Factor):
        behind = Path(layer, found.operation.outs[0], mixed=True)
        behind.move(behind.now)
        if all(each.activated for each, _ in _ends(tape, behind, opaque)[0]):
            return found.otherwise  # which decides how much the product counts
    return found


def _of_calls(found: list[Decision | Factor]) -> Decision:
    """What several calls of one layer meet, if that is the same."""
    each = [one.otherwise if isinstance(one, Factor) else one for one in found]
    first, times = each[0], f"in each of {len(each)} calls"
    missed = [one for one in each if one.unresolved]
    if missed:
        decision: Decision = Direct(None, f"in one of {len(each)} calls: {missed[0].reason}", True)
    elif all(isinstance(one, Direct) and one.gate == first.gate for one in each):
        reasons = "; ".join(dict.fromkeys(one.reason for one in each))
        decision = Direct(first.gate, f"{reasons}, {times}")
    elif isinstance(first, Deferred) and all(_same_seat(one, first) for one in each):
        decision = replace(first, reason=f"{first.reason}, {times}")
    else:
        names = ", ".join(dict.fromkeys(gate_name(one.gate) for one in each))
        same = "it is told each elsewhere" if len(set(names.split(", "))) == 1 else names
        decision = Direct(None, f"called {len(each)} times, not with one gate: {same}", True)
    decision.witnesses = [witness for one in each for witness in one.witnesses]
    decision.way = [
        line for n, one in enumerate(each, 1) for line in (f"  call {n} of {len(each)}:", *one.way)
    ]
    return decision


def _same_seat(one: Decision, other: Deferred) -> bool:
    """Whether two calls of a layer are told the same at the same place."""
    if not isinstance(one, Deferred) or (one.gate, one.side) != (other.gate, other.side):
        return False
    same = one.module.module is other.module.module and one.calls == other.calls
    return same and repr(one.transport) == repr(other.transport)


Ends = list[tuple[Path, Decision | Factor | None]]


def _ends(tape: Tape, start: Path, opaque: Opaque) -> tuple[Ends, list[str]]:
    """What is found at the end of every way from a value, and the ways in words."""
    ends: Ends = []
    lines: list[str] = []
    waiting, seen = [start], set()
    while waiting:
        path = waiting.pop()
        found = _follow(tape, path, opaque)
        lines += path.lines
        if isinstance(found, list):
            # Ways that meet again are one.
            fresh = [each for each in found if each.only or each.now not in seen]
            seen.update(each.now for each in found if not each.only)
            waiting += reversed(fresh if len(ends) + len(waiting) < _MOST else fresh[:1])
        else:
            ends.append((path, found))
    return ends, lines


def _together(tape: Tape, layer: Call, ends: Ends) -> Decision:
    """What several that consume an output make of it."""
    found: list[Any] = [end.otherwise if isinstance(end, Factor) else end for _, end in ends]
    if not all(_is_told(end) for end in found):
        decision = no_activation(tape, layer.outs[0])
        missed = [end for end in found if end is not None and end.unresolved]
        if missed and decision.unresolved:
            return missed[0]
        if any(path.activated for path, _ in ends) and not decision.unresolved:
            decision = Direct(None, "some of what reads it is an activation", unresolved=True)
        return decision
    gates: list[Any] = []
    for end in found:
        gates += [] if end.gate in gates else [end.gate]
    if all(isinstance(end, Direct) for end in found):
        if all_entries(layer.outs[0].shape, [path.moves for path, _ in ends]) and len(gates) == 1:
            return Direct(gates[0], f"direct, in {len(ends)} places")
        if not any(path.moves for path, _ in ends):
            return Direct(Sum(gates), f"direct, in {len(ends)} places: the sum of their slopes")
    if any(isinstance(end, Direct) and path.moves for path, end in ends):
        names = " and ".join(gate_name(gate) for gate in gates)
        return Direct(None, f"{names} follow, each on a part of it", unresolved=True)
    places = list(dict.fromkeys(end.reason.removeprefix("deferred to ") for end in found))
    places = ["the layer itself" if place.startswith("direct") else place for place in places]
    shown = [*places[:3], f"{len(places) - 3} more"] if len(places) > 4 else places
    return Several(found, f"deferred to {' and '.join(shown)}")


def _is_told(end: Decision | Factor | None) -> bool:
    """Whether it is an elementwise activation that the layer can be told."""
    if not isinstance(end, Direct | Deferred) or end.unresolved:
        return False
    joint = isinstance(end.gate, JointGate) or end.gate == "glu"
    return end.gate is not None and not joint


def _follow(tape: Tape, path: Path, opaque: Opaque) -> Decision | Factor | list[Path] | None:
    """Go on to an activation, to where several ways part, or to an end without one (None)."""
    while True:
        normalizer = normalizing(path, opaque)
        if normalizer is not None and not path.joint:
            path.say(f"{type(normalizer.module).__name__} {normalizer.name!r}", normalizer.outs[0])
            path.mix(normalizer.outs[0])
            continue
        op = path.only_user()
        if op is not None and not path.joint:
            moves = layout_move(path.moves, path.now, op)
            if moves is not None or op.name in DROPOUTS:
                path.ran(op)
                path.move(op.outs[0], same=True, moves=moves)
                continue
        call = module_activation(tape, path, opaque)
        if call is not None and not path.joint:
            path.mixed = path.mixed or bool(path.steps)  # then it sees another tensor than z
            path.witnesses.append(Witness(call.name, "", type(call.module), call.module))
            path.witnesses[-1].remember(call.module)
            path.say(f"{type(call.module).__name__} {call.name!r}", call.outs[0])
            return _activation(tape, path, call.outs[0], call.module)
        region = find_region(
            path.now,
            path.users(),
            path.count,
            joint=path.joint,
            laid_out=bool(path.moves)
            or path.depth > 0
            or (path.before is not None and not path.joint),
            spatial=path.layer.spatial or isinstance(path.layer.module, nn.modules.conv._ConvNd),
        )
        if region is not None and region.nonlinear:
            if path.depth and _is_reduced(region.end):
                path.say(" ".join(map(in_module, region.ops)), region.end)
                return None  # a normalization that is written out
            gate = gate_of(path, region, opaque)
            path.witnesses += witnesses_of(region, gate, opaque)
            path.say(" ".join(dict.fromkeys(map(in_module, region.ops))), region.end)
            return _activation(tape, path, region.end, gate)
        if path.joint or (region is not None and region.joint and path.mixed):
            path = _rewind(path)
            region = None
        calls = taken(path, opaque)
        if region is not None and path.mixed:
            path.say(" ".join(map(in_module, region.ops)), region.end)
            path.mix(region.end)
        elif region is not None:
            if region.joint:
                path.before = path.branch()
            path.say(" ".join(map(in_module, region.ops)), region.end)
            path.steps, path.count = path.steps + region.steps, region.count
            path.joint = region.joint
            path.move(region.end)
        elif (op := path.only_user()) is not None and _mixes(op, path.now):
            path.ran(op)
            path.mix(op.outs[0])
        elif op is not None and _multiplies(op) and not path.mixed and not path.steps:
            path.ran(op)
            reason = "multiplied by a tensor that is no layer's output, or activated after that"
            otherwise = Direct(None, reason, unresolved=True)
            return Factor(path.layer, None, op, path.now, path.moves, otherwise)
        elif calls and (strange := unknown_within(calls[-1], tape)) is not None:
            return Direct(None, unknown(strange), unresolved=True)
        elif calls:
            path.say(f"{type(calls[-1].module).__name__} {calls[-1].name!r}", calls[-1].outs[0])
            path.mix(calls[-1].outs[0])
        else:
            return _parted(path, opaque)


def _is_reduced(value: Value) -> bool:
    """Whether all that is done with a value is to sum it over some axis."""
    found = users(value)
    return bool(found) and all(op.name in REDUCTIONS for op in found) and not value.is_output


def _rewind(path: Path) -> Path:
    """The path before steps that split or pool, behind which no activation was found."""
    if path.before is not None and path.joint:
        before = path.before
        path.now, path.only, path.steps, path.count = (
            before.now,
            before.only,
            before.steps,
            before.count,
        )
        path.moves, path.same, path.visited = before.moves, before.same, before.visited
        path.lines, path.joint = path.lines[: len(before.lines)], False
    return path


def _parted(path: Path, opaque: Opaque) -> list[Path] | None:
    """The ways on from a value that several consume, or that is selected from, joined or pooled."""
    parts = groups(
        path.now, path.users(), [call for call in path.now.given_to if opaque(call.module)]
    )
    op = path.users()[0] if len(path.users()) == 1 else None
    if path.now.is_output and path.only is None:
        for each in path.users():
            path.ran(each)
        path.say("the output")
        return None
    if len(parts) > 1:
        ways = [path.branch() for _ in parts]
        path.say(f"read in {len(parts)} places:")
        for way, only in zip(ways, parts, strict=True):
            way.only, way.depth = only, path.depth + 1
        return ways
    found = (
        []
        if op is None
        else [pair for pair in other_moves(path.now, op) if pair[1].users or pair[1].is_output]
    )
    for each in path.users():
        path.ran(each)
    if not found or path.steps:
        return None
    ways = [path.branch() for _ in found]
    for way, (move, out) in zip(ways, found, strict=True):
        way.depth += len(ways) > 1
        way.mixed = way.mixed or move.mixes
        way.move(out, moves=(*way.moves, move))
    return ways


def _of_parameters(value: Value) -> bool:
    """Whether it is computed from parameters and numbers alone, and so is no sample's."""
    if value.maker is None:
        return value.parameter or value.number is not None
    return bool(value.maker.ins) and all(map(_of_parameters, value.maker.ins))


def _mixes(op: Op, value: Value) -> bool:
    """Whether the operation normalizes, or adds something: of the same shape, no activation."""
    name = op.name
    if op.outs[0].shape != value.shape or not op.ins:
        return False
    others = [other for other in op.ins if other is not value]
    constant = all(v.maker is None or not v.live or _of_parameters(v) for v in others)
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


def _activation(tape: Tape, path: Path, end: Value, gate: Any) -> Decision | Factor:
    """The gate, given to the layer where that is enough."""
    path.activated = True
    strange = unknown_behind(end)
    if strange is not None:
        return Direct(None, unknown(strange), unresolved=True)
    if isinstance(gate, Replay) and not has_slope(gate):
        reason = f"{gate_name(gate)} follows, which PyTorch cannot differentiate forward"
        return Direct(None, reason, unresolved=True)
    several = isinstance(gate, nn.Module) and any(p.numel() > 1 for p in gate.parameters())
    if path.mixed or several:
        reason = f"{gate_name(gate)} sees a sum or a normalization that no module takes or returns"
        found = deferred(tape, path, end, gate)
        return Direct(None, reason, unresolved=True) if found is None else found
    joint = isinstance(gate, JointGate) or gate == "glu"
    direct = Direct(gate, "joint" if joint else "direct")
    if joint or path.steps:
        return direct
    path.move(end)
    while True:
        op = path.only_user()
        if op is not None and _multiplies(op):
            otherwise = Direct(gate, "direct; what it returns is multiplied by another tensor")
            return Factor(path.layer, gate, op, path.now, path.moves, otherwise)
        moves = None if op is None else layout_move(path.moves, path.now, op)
        if op is None or (moves is None and op.name not in DROPOUTS):
            return direct
        path.move(op.outs[0], moves=moves)
