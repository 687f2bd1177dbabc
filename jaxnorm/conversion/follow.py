"""What a value in a traced program is followed to: `Follower`.

Everything is followed that is an elementwise function of the value: where that ends, the function
is the gate. Where the value itself is read by others, each of them is followed in turn.
"""

from typing import Any, NamedTuple

from jaxnorm.conversion.consumers import beyond, called, is_strange, missed, word
from jaxnorm.conversion.decisions import LEAVE
from jaxnorm.conversion.elementwise import SAME_ENTRIES
from jaxnorm.conversion.extract import Extracted, ExtractedGate, Sum, extract, needed
from jaxnorm.conversion.moves import Move, all_entries, move_of
from jaxnorm.conversion.region import Region, find_region
from jaxnorm.conversion.report import gate_name
from jaxnorm.conversion.trace import Program, Step, Value


class Place(NamedTuple):
    """Where a gate is seen: at a normalization's output, or (at "") at the value, both moved."""

    at: str
    gate: Any
    moves: tuple[Move, ...] = ()
    scope: tuple[Any, ...] = ()


class Found(NamedTuple):
    """What follows a value: a gate and, in words, where it was found or why there is none."""

    gate: Any
    reason: str
    region: Any = None
    unresolved: bool = False
    sum: Any = None
    places: tuple[Place, ...] = ()
    lines: tuple[str, ...] = ()  # of the way, for the report
    mixed: bool = False  # whether some of several that read it are no activations

    @property
    def activated(self) -> bool:
        """Whether an activation was found, that can be told."""
        return not self.unresolved and self.gate is not None and self.gate is not LEAVE


class Follower:
    """Follows values of a program, and of the bodies of its loops; each once.

    Args:
        program: the flat program.
    """

    def __init__(self, program: Program) -> None:
        self.inner, self.outer = beyond(program)
        self.program_of: dict[Value, Program] = {}
        self.outs: dict[int, list[tuple[Program, Step]]] = {}
        for each in program.all():
            self.program_of.update((value, each) for value in each.inputs)
            for step in each.steps:
                what, number, _ = step.mark or ("", 0, "")
                if what == "out":
                    self.outs.setdefault(number, []).append((each, step))

    def follow(self, program: Program, source: Value) -> Found:
        """The gate that follows a value."""
        if source not in program.followed:
            program.followed[source] = Found(
                None, "no activation follows: the next round of a loop"
            )
            program.followed[source] = self._follow(program, source)
        return program.followed[source]

    def times(self, at: str) -> int:
        """How often the normalization of a path is called."""
        marks = [step.mark for steps in self.outs.values() for _, step in steps]
        return sum(mark is not None and mark.path == at for mark in marks)

    def _follow(self, program: Program, source: Value) -> Found:
        region = find_region(program, source)
        if not region.ends:
            return Found(LEAVE, "its output is not used")
        gates = [extract(region, end) for end in region.ends]
        first, several = gates[0], len(gates) > 1
        lines = _lines(region)
        if all(gate.same(first) for gate in gates[1:]):
            if not first.linear:
                if first.gate is None:
                    return Found(None, f"read by {first.name}", region, True, lines=lines)
                strange = [step for step in region.readers if is_strange(step)]
                if strange:
                    reason = f"{strange[0].name}, which is not known, follows behind {first.name}"
                    return Found(None, reason, region, True, lines=lines)
                reason = f"direct, in {len(gates)} places" if several else "direct"
                places = (Place("", first.gate),)
                return Found(first.gate, reason, region, places=places, lines=lines)
            if any(end.hidden for end in region.ends):
                names = ", ".join(program.opaque)
                reason = f"it may be in an object in the output that is no pytree: {names}"
                return Found(None, reason, region, unresolved=True, lines=lines)
            behind = self._behind_arithmetic(program, region)
            found = self._branches(program, region) if behind is None else behind
            return found._replace(lines=(*lines, *found.lines))
        if all(gate.gate is not None and not gate.linear for gate in gates):
            gate = _sum(gates)
            reason = f"direct, in {len(gates)} places: the sum of their slopes"
            return Found(gate, reason, region, places=(Place("", gate),), lines=lines)
        names = sorted({"others" if gate.linear else gate.name for gate in gates})
        reason = f"read by {' and '.join(names)}"
        return Found(None, reason, region, unresolved=True, lines=lines)

    def _behind_arithmetic(self, program: Program, region: Region) -> Found | None:
        """What is known of an activation of a sum or product, if that is all that reads it."""
        if len(region.ends) != 1 or region.ends[0].output or len(region.readers) != 1:
            return None
        (step,) = region.readers
        if step.name not in ("add", "sub", "add_any", "mul"):
            return None
        found, reason = self.follow(program, step.outputs[0]), ""
        if found.gate is LEAVE or (found.gate is None and not found.unresolved):
            return None
        moves = _moves_to(region, region.ends[0])
        told = found.activated and all(place.at for place in found.places)
        if told and found.places and step.name != "mul" and moves is not None:
            places = tuple(p._replace(moves=(*moves, *p.moves)) for p in found.places)
            return found._replace(region=region, places=places, sum=None)
        # Of a sum of sums too: it is linear in all. A product is not seen in its activation.
        last = found if found.gate is not None and not told else found.sum
        if last is not None and step.name != "mul":
            reason = f"{gate_name(last.gate)} sees a sum that no module shows"
            return Found(None, reason, region, True, last, lines=found.lines)
        reason = found.reason if found.gate is None else gate_name(found.gate)
        return Found(None, f"behind {word(step)}: {reason}", region, True, lines=found.lines)

    def _branches(self, program: Program, region: Region) -> Found:
        """What all that reads a value, or parts of it, makes of it."""
        found: list[Found] = []
        for end in () if _is_softmax(region) else region.ends:
            moves = _moves_to(region, end)
            if end.output:
                found.append(self._leaving(program, end))
            for step in region.readers:
                if end in step.inputs:
                    found += [_moved(each, moves) for each in self._behind(program, step, end)]
        lines = tuple(line for each in found for line in each.lines)
        if len(found) > 1:
            lines = f"  read in {len(found)} places:", *(f"  {line}" for line in lines)
        unresolved = [each for each in found if each.unresolved]
        activated = [each for each in found if each.activated]
        if unresolved:
            first = unresolved[0] if len(found) == 1 else unresolved[0]._replace(sum=None)
            mixed = any(not each.activated and not each.unresolved for each in found)
            return first._replace(region=region, lines=lines, mixed=mixed)
        if not activated:
            name = missed(region.source, self.inner, self.outer)
            if name is not None:
                reason = f"{name} follows behind or beside {_readers(region)}"
                return Found(None, reason, region, unresolved=True, lines=lines)
            return Found(None, f"no activation follows: {_readers(region)}", region, lines=lines)
        if len(activated) < len(found):
            names = dict.fromkeys(gate_name(each.gate) for each in activated)
            reason = f"read by {' and '.join([*names, 'others'])}"
            return Found(None, reason, region, unresolved=True, lines=lines, mixed=True)
        places: list[Place] = []
        for place in (place for each in found for place in each.places):
            places += [] if place in places else [place]
        return _together(region, tuple(places))._replace(lines=lines)

    def _leaving(self, program: Program, value: Value) -> Found:
        """Behind the output, of the program or of the body of a loop."""
        if program.step is not None:
            name = missed(value, {}, self.outer)
            if name is not None:
                return Found(None, f"{name} follows behind a loop", unresolved=True)
        return Found(None, "no activation follows: the output")

    def _behind(self, program: Program, step: Step, value: Value) -> list[Found]:
        """Behind one step that reads a value, moves it or takes it into a loop."""
        line = (_line(step),)
        if any(each in self.inner for each in (value,)) and step.name in ("scan", "cond", "while"):
            return [each._replace(lines=(*line, *each.lines)) for each in self._within(step, value)]
        if step.mark is not None and step.mark.what == "in":
            return [self._normalized(program, step, value)]
        found = []
        for index, result in enumerate(step.outputs):
            move = move_of(step, value, index)
            if move is None or not (result.users or result.output):
                continue
            behind = self.follow(program, result)
            if behind.gate is LEAVE:
                continue
            each = _moved(behind, (move,), word(step))
            found.append(each._replace(lines=(*line, *each.lines)))
        if not found and step.name in ("add", "sub", "add_any") and step.inputs.count(value) == 1:
            behind = self.follow(program, step.outputs[0])
            if behind.activated and not all(place.at for place in behind.places):
                reason = f"{gate_name(behind.gate)} sees a sum that no module shows"
                behind = Found(None, reason, unresolved=True, lines=behind.lines)
            if behind.gate is not LEAVE:
                found.append(behind._replace(sum=None, lines=(*line, *behind.lines)))
        return found or [Found(None, f"no activation follows: {word(step)}", lines=line)]

    def _within(self, step: Step, value: Value) -> list[Found]:
        """In the body of a loop, where the value itself can be followed to its activation."""
        found = []
        for each in self.inner[value]:
            program = self.program_of.get(each)
            if program is None or program.step is not step or not each.users:
                continue
            behind = self.follow(program, each)
            if behind.activated and any(place.at or place.moves for place in behind.places):
                reason = f"{gate_name(behind.gate)} sees it within {word(step)}"
                behind = Found(None, reason, unresolved=True, lines=behind.lines)
            found.append(behind)
        return found or [Found(None, f"no activation follows: {word(step)}")]

    def _normalized(self, program: Program, step: Step, value: Value) -> Found:
        """Behind a normalization of a value."""
        _, number, name = step.mark or ("", 0, "")
        line = f"  {name} -> {list(value.aval.shape)}"
        outs = [(p, each) for p, each in self.outs.get(number, ()) if each.scope == step.scope]
        if len(outs) != 1 or outs[0][0] is not program:
            return Found(None, f"no activation follows: {name}", lines=(line,))
        (_, out), lines = outs[0], (line,)
        behind = self.follow(program, out.outputs[0])
        lines += behind.lines
        if not behind.activated:
            if behind.gate is LEAVE:
                return Found(None, f"{behind.reason}, behind {name}", lines=lines)
            reason = f"{behind.reason}, behind {name}"
            return Found(None, reason, None, behind.unresolved, behind.sum, lines=lines)
        if out.outputs[0].aval.shape != value.aval.shape:
            return Found(None, f"{name} changes the shape", unresolved=True, lines=lines)
        gates = {gate_name(place.gate): place for place in behind.places}
        if len(gates) != 1 or any(place.at or place.moves for place in behind.places):
            reason = f"{gate_name(behind.gate)} sees what becomes of it behind {name}"
            return Found(None, reason, unresolved=True, lines=lines)
        place = Place(name, behind.gate, (), step.scope)
        return Found(behind.gate, f"deferred to {name}", places=(place,), lines=lines)


def _is_softmax(region: Region) -> bool:
    """Whether the largest entry is taken, and subtracted again."""
    largest = [step for step in region.readers if step.name == "reduce_max"]
    waiting, reached = [value for step in largest for value in step.outputs], set()
    while waiting:
        value = waiting.pop()
        if value not in reached and len(reached) < 100:
            reached.add(value)
            waiting += [result for step in value.users for result in step.outputs]
    rest = [step for step in region.readers if step not in largest]
    return any(value in reached for step in rest for value in step.inputs)


def _together(region: Region, places: tuple[Place, ...]) -> Found:
    """What a layer is told at these places."""
    gates: list[Any] = []
    for place in places:
        gates += [] if place.gate in gates else [place.gate]
    names = " and ".join(map(gate_name, gates))
    here = [place for place in places if not place.at]
    if len(here) == len(places):
        whole = not any(move.mixes for place in places for move in place.moves)
        if whole and all_entries(region.source.aval.shape, [place.moves for place in places]):
            if len(gates) == 1:
                n = len(places)
                reason = "direct" if n == 1 else f"direct, in {n} places"
                return Found(gates[0], reason, region, places=places)
        reason = f"{names} follow{'s' * (len(places) == 1)}, on a part or a pool of it"
        return Found(None, reason, region, unresolved=True, places=places)
    if any(place.moves for place in here):
        return Found(None, f"{names} follow, each on a part of it", region, unresolved=True)
    at = list(dict.fromkeys(place.at or "the layer itself" for place in places))
    shown = [*at[:3], f"{len(at) - 3} more"] if len(at) > 4 else at
    gate = gates[0] if len(gates) == 1 else tuple(gates)
    return Found(gate, f"deferred to {' and '.join(shown)}", region, places=places)


def _moved(found: Found, moves: tuple[Move, ...] | None, where: str = "") -> Found:
    """The same from before some moves."""
    if moves is None and found.places:
        return Found(None, f"{gate_name(found.gate)} sees it laid out anew", unresolved=True)
    if found.unresolved and where and not found.reason.startswith("behind"):
        return found._replace(reason=f"behind {where}: {found.reason}", sum=None)
    places = tuple(p._replace(moves=(*(moves or ()), *p.moves)) for p in found.places)
    return found._replace(places=places, sum=found.sum if not where else None)


def _moves_to(region: Region, end: Value) -> tuple[Move, ...] | None:
    """The moves from a region's source to one of its ends."""
    moves = []
    for step in needed(region, end):
        if step.name in SAME_ENTRIES and step.inputs[0].aval.size > 1:
            same = step.inputs[0].aval.shape == step.outputs[0].aval.shape
            if same and step.name not in ("rev", "transpose"):
                continue
            move = move_of(step, step.inputs[0])
            if move is None:
                return None
            moves.append(move)
    return tuple(moves)


def _sum(gates: list[Extracted]) -> Any:
    phi, slope = (Sum([getattr(gate, what) for gate in gates]) for what in ("phi", "run_slope"))
    return ExtractedGate(phi, slope, " + ".join(sorted(gate.name for gate in gates)))


def _lines(region: Region) -> tuple[str, ...]:
    """A region in words: the functions that it calls, or its operations."""
    names: dict[str, Any] = {}
    for step in region.steps:
        own = [call for call in called(step) if call not in region.source_calls]
        if step.mark is None and step.name not in SAME_ENTRIES - {"reshape", "transpose"}:
            names[own[0] if own else step.name] = step.outputs[0].aval.shape
    return tuple(f"  {name} -> {list(shape)}" for name, shape in names.items())


def _line(step: Step) -> str:
    where = f" in {step.calls[-1]!r}" if step.calls and step.calls[-1] else ""
    return f"  {step.name}{where} -> {list(step.outputs[0].aval.shape)}"


def _readers(region: Region) -> str:
    words = [word(step) for step in region.readers]
    if any(end.output for end in region.ends):
        words.append("the output")
    return ", ".join(dict.fromkeys(words)) or "nothing"
