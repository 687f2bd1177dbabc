"""The way from each layer's output to its activation, in a traced program.

A layer's slope is told where its activation is seen, and comes back to the layer as gradients do:
along the way by which its output got there.
"""

from dataclasses import dataclass, field
from typing import Any

from jaxnorm.conversion.elementwise import CALLS, SAME_ENTRIES, is_elementwise
from jaxnorm.conversion.extract import extract
from jaxnorm.conversion.region import Region, find_region
from jaxnorm.conversion.report import gate_name
from jaxnorm.conversion.trace import Program, Step, Value
from jaxnorm.program.lineage import Family
from jaxnorm.program.readers import is_loss, is_softmax, reached_from, statistics_of, sums

#: Choose, place or average entries: the slope comes back as a gradient would.
_MOVES = {
    *("dynamic_slice", "gather", "select_n", "concatenate", "pad", "rev"),
    *("reduce_window_sum", "reduce_window_max", "dynamic_update_slice", "broadcast_in_dim"),
    *("transpose", "reshape", "squeeze", "expand_dims"),
}
_PARTS = {"split", "slice"}
#: Equations with a program in them that is run with the rule too.
ENTERED = CALLS | {"scan", "cond"}
_SUMS = {"add", "add_any", "sub"}
_WORDS = {
    "concatenate": "a concatenation",
    "conv_general_dilated": "a convolution",
    "cond": "a branch",
    "dot_general": "a product",
    "mul": "a multiplication",
    "reduce_max": "a maximum",
    "reduce_sum": "a reduction",
    "reduce_window_max": "max pooling",
    "reduce_window_sum": "average pooling",
    "scan": "a loop",
    "select_n": "dropout or a choice",
    "slice": "a part of it",
    "split": "a split",
    "while": "a loop",
}


@dataclass(frozen=True)
class Edge:
    """A step along which a layer's handle is passed on.

    Attributes:
        step: the step.
        source: which of its inputs.
        target: which of its outputs.
        kind: "same" where entries stay what they are, "move" where the step is linear and moves
            them, "times" where it multiplies them by its other input, "told" where that is the end
            of the way: the slope is the other input.
    """

    step: Step
    source: int
    target: int
    kind: str

    @property
    def factor(self) -> bool:
        """Whether its other input is a factor of the slope."""
        return self.kind in ("times", "told")


@dataclass(frozen=True)
class Tell:
    """Where a slope is told.

    Attributes:
        value: what the activation is applied to.
        gate: the activation; None: the slope is 1.
        ends: whether the way ends here; otherwise the slope is multiplied by what follows.
    """

    value: Value
    gate: Any
    ends: bool = True


@dataclass(eq=False)
class Way:
    """What follows a value.

    Attributes:
        gate: the activation, or several in words; None if none follows.
        reason: in words, where, or why there is none.
        unresolved: whether there may be one that was not found.
        edges: the steps on the way.
        tells: where slopes are told.
        summed: the sums that are all that reads the activation, if so.
    """

    gate: Any
    reason: str
    unresolved: bool = False
    edges: list[Edge] = field(default_factory=list)
    tells: list[Tell] = field(default_factory=list)
    summed: list[Step] = field(default_factory=list)

    @property
    def found(self) -> bool:
        """Whether a slope is told anywhere."""
        return bool(self.tells) or any(edge.kind == "told" for edge in self.edges)


class Ways:
    """The ways in a program, and in the bodies of its loops; each is found once.

    Args:
        program: the whole program.
        family: its parameters.
    """

    def __init__(self, program: Program, family: Family) -> None:
        self._family = family
        self._known: dict[Value, Way] = {}
        #: The body that an equation with programs holds, and what each body is in.
        self._bodies: dict[Any, list[Program]] = {}
        self._around: dict[Program, Program] = {}
        for outer in program.all():
            for body in outer.bodies:
                self._bodies.setdefault(id(body.step), []).append(body)
                self._around[body] = outer

    def follow(self, program: Program, value: Value) -> Way:
        """What follows a value."""
        if value not in self._known:
            # Round a loop it may come back here, with nothing new.
            self._known[value] = Way(None, "no activation follows: the next round of a loop")
            self._known[value] = self._follow(program, value)
        return self._known[value]

    def _follow(self, program: Program, value: Value) -> Way:
        region = find_region(program, value)
        if not region.ends:
            return Way(None, "its output is not used")
        ends, readers = region.ends, region.readers
        if is_softmax(region):
            return Way(None, "no activation follows: a function of all entries, such as softmax")
        statistics = statistics_of(region)
        if statistics:
            readers = [step for step in readers if step not in statistics]
            ends = [v for v in ends if v.output or any(step in readers for step in v.users)]
        functions = [extract(region, end) for end in ends]
        first = functions[0]
        if not all(each.same(first) for each in functions[1:]):
            names = sorted({"others" if each.linear else each.name for each in functions})
            return Way(None, f"read by {' and '.join(names)}", True)
        if first.linear:
            return self._linear(program, region, ends, readers)
        if first.gate is None:
            return Way(None, f"read by {first.name}", True)
        if first.distance and is_loss(region, ends, readers):
            return Way(None, "no activation follows: a loss", summed=sums(ends, readers))
        return self._gated(region, ends, readers, first.gate)

    def _linear(self, program: Program, region: Region, ends: Any, readers: list[Step]) -> Way:
        """Where the value itself, moved or in another unit, is read by something else."""
        branches: list[tuple[Value, Step | None, Way]] = []
        for end in ends:
            if end.hidden:
                names = ", ".join(program.opaque)
                reason = f"it may be in an object in the output that is no pytree: {names}"
                return Way(None, reason, True)
            if end.output:
                branches.append((end, None, self._leaving(program, end)))
            for step in readers:
                if end in step.inputs:
                    ways = self._behind(program, step, end)
                    branches += [(end, step, way) for way in ways]
        branches = _without_statistics(branches)
        found = [each for each in branches if each[2].found]
        if any(way.unresolved for _, _, way in branches):
            reasons = dict.fromkeys(way.reason for _, _, way in branches if way.unresolved)
            return Way(None, " and ".join(reasons), True)
        if not found:
            words = [_word(step) for _, step, _ in branches] or ["nothing"]
            return Way(None, f"no activation follows: {', '.join(dict.fromkeys(words))}")
        if len(found) < len(branches):
            names = [gate_name(way.gate) for _, _, way in found]
            return Way(None, f"read by {' and '.join(dict.fromkeys([*names, 'others']))}", True)
        return _joined(region, [(end, way) for end, _, way in branches])

    def _behind(self, program: Program, step: Step, value: Value) -> list[Way]:
        """The ways behind a step that reads a linear function of the source."""
        at, name = step.inputs.index(value), step.name
        if id(step) in self._bodies or any(map(_is_program, step.eqn.params.values())):
            return [self._entering(step, value)]
        if any(name not in ENTERED for name in step.around):
            return [Way(None, "it goes into a function with a derivative of its own", True)]
        if name in _SUMS or name in ("mul", "div"):
            return [self._arithmetic(program, step, at)]
        if name in _PARTS:
            ways = [self.follow(program, result) for result in step.outputs]
            if not any(way.found or way.unresolved for way in ways):
                return ways[:1]
            # Of a part without an activation every sample counts.
            return [
                _after(Edge(step, at, n, "move"), way if way.found or way.unresolved else _one(v))
                for n, (way, v) in enumerate(zip(ways, step.outputs, strict=True))
            ]
        if name in _MOVES and not (name == "select_n" and at == 0):
            way = self.follow(program, step.outputs[0])
            places = [n for n, each in enumerate(step.inputs) if each is value]
            return [_after(Edge(step, n, 0, "move"), way) for n in places]
        if name == "reduce_sum" and step.outputs[0].aval.size > 1:  # an average of positions
            return [_after(Edge(step, at, 0, "move"), self.follow(program, step.outputs[0]))]
        if is_elementwise(step.eqn):
            return [Way(None, f"read by {name} of it and another value", True)]
        return [Way(None, f"no activation follows: {_word(step)}")]

    def _entering(self, step: Step, value: Value) -> Way:
        """The way into the body of a loop or a branch, where no handle can follow."""
        bodies = self._bodies.get(id(step), [])
        inner = [(body, v) for body in bodies for v in body.inputs if v.outer is value]
        if not inner or step.name not in ("scan", "cond"):
            return Way(None, f"it goes into {_word(step)}", True)
        return self._beyond([self.follow(body, v) for body, v in inner], f"inside of {_word(step)}")

    def _leaving(self, program: Program, value: Value) -> Way:
        """The way out of the whole program, or of the body of a loop or a branch."""
        none = Way(None, "no activation follows: the output")
        if program not in self._around:
            return none
        step, outer = program.step, self._around[program]
        if step.name not in ("scan", "cond"):
            return Way(None, f"it leaves {_word(step)}", True)
        ways = []
        for number in (n for n, each in enumerate(program.outputs) if each is value):
            if step.name == "scan" and number < step.eqn.params["num_carry"]:
                again = program.inputs[step.eqn.params["num_consts"] + number]
                ways.append(self.follow(program, again))
            ways.append(self.follow(outer, step.outputs[number]))
        return self._beyond(ways, f"outside of {_word(step)} or in its next round")

    def _beyond(self, ways: list[Way], where: str) -> Way:
        """What lies where no handle can follow: nothing, or what is not reached."""
        for way in ways:
            if way.unresolved:
                return Way(None, way.reason, True)
            if way.found:
                return Way(None, f"{gate_name(way.gate)} sees it {where}", True)
        return Way(None, "no activation follows: the output")

    def _arithmetic(self, program: Program, step: Step, at: int) -> Way:
        """The way behind a sum or a product with another value."""
        if step.inputs.count(step.inputs[at]) > 1 or (step.name == "div" and at == 1):
            return Way(None, f"read by {_word(step)} of it", True)
        way = self.follow(program, step.outputs[0])
        times = step.name == "mul" and not self._is_scale(step, at)
        if not way.found and not way.unresolved:
            edges = [Edge(step, at, 0, "told")]
            return Way(None, "times what it is multiplied by", edges=edges) if times else way
        return _after(Edge(step, at, 0, "times" if times else "same"), way)

    def _gated(self, region: Region, ends: list[Value], readers: list[Step], gate: Any) -> Way:
        """Behind an activation; what it is multiplied by belongs to the slope."""
        value = region.source
        plain = Way(gate, "direct", tells=[Tell(value, gate)], summed=sums(ends, readers))
        if len(ends) != 1 or len(readers) != 1 or readers[0].name != "mul" or ends[0].output:
            return plain
        (step,) = readers
        at = step.inputs.index(ends[0])
        if step.inputs.count(ends[0]) > 1 or self._is_scale(step, at):
            return plain
        edges = [*_path(region, ends[0]), Edge(step, at, 0, "told")]
        tells = [Tell(value, gate, ends=False)]
        return Way(gate, "times what it is multiplied by", edges=edges, tells=tells)

    def _is_scale(self, step: Step, at: int) -> bool:
        """Whether the other factor is one for many entries, as that of a normalization is."""
        return self._is_repeated(step.inputs[1 - at], step.outputs[0].aval.size)

    def _is_repeated(self, value: Value, size: int) -> bool:
        """Whether it is made of parameters, and of values that have fewer entries than are read.

        (Or would have, if the batch were larger.)
        """
        if value.constant or value.aval.size < size or self._family.lineage(value) is not None:
            return True
        step = value.maker
        if step is None:
            return False
        if step.name.startswith("reduce_") and step.inputs[0].aval.size == value.aval.size:
            return True
        if not (step.name in SAME_ENTRIES or is_elementwise(step.eqn)):
            return False
        return all(self._is_repeated(each, size) for each in step.inputs)


def _without_statistics(branches: list[tuple[Value, Step | None, "Way"]]) -> list[Any]:
    """The branches, but for sums of squares that come back to another one, as a variance does."""
    summed = [each for each in branches if each[2].summed]
    rest = [each for each in branches if not each[2].summed]
    after = reached_from(step for _, step, _ in rest if step is not None)
    after |= {end for end, _, _ in rest}

    def comes_back(end: Value, way: Way) -> bool:
        steps = (step for value in reached_from(way.summed) for step in value.users)
        return any(
            step.outputs[0].aval.size >= end.aval.size and not after.isdisjoint(step.inputs)
            for step in steps
        )

    return rest if rest and all(comes_back(end, way) for end, _, way in summed) else branches


def _one(value: Value) -> "Way":
    return Way(None, "no activation follows", tells=[Tell(value, None)])


def _path(region: Region, end: Value) -> list[Edge]:
    """The edges inside of a region, from its source to an end."""
    wanted, edges = {end}, []
    for step in reversed(region.steps):
        for target, value in enumerate(step.outputs):
            if value not in wanted:
                continue
            through = region.through.get(step)  # of dropout, which is looked through
            for source, given in enumerate(step.inputs):
                if given in region.order and through in (None, given):
                    kind = "same" if is_elementwise(step.eqn) else "move"
                    edges.append(Edge(step, source, target, kind))
                    wanted.add(given)
    return edges[::-1]


def _after(edge: Edge, way: Way) -> Way:
    """A way with one step before it."""
    reason = way.reason
    if way.unresolved:
        reason = reason if "behind" in reason else f"behind {_word(edge.step)}: {reason}"
    elif reason == "direct":
        reason = f"behind {_word(edge.step)}"
    return Way(way.gate, reason, way.unresolved, [edge, *way.edges], way.tells, way.summed)


def _joined(region: Region, branches: list[tuple[Value, Way]]) -> Way:
    """All branches behind the ends of a region."""
    gates = [way.gate for _, way in branches]
    names = list(dict.fromkeys(gate_name(gate) for gate in gates))
    edges: list[Edge] = []
    tells: list[Tell] = []
    for end, way in branches:
        for edge in [*_path(region, end), *way.edges]:
            if edge not in edges:
                edges.append(edge)
        tells += [tell for tell in way.tells if tell not in tells]
    reasons = list(dict.fromkeys(way.reason for _, way in branches))
    if len(names) == 1:
        return Way(gates[0], reasons[0], edges=edges, tells=tells)
    shown = " and ".join(names)
    return Way(shown, "; ".join(reasons), edges=edges, tells=tells)


def _is_program(param: Any) -> bool:
    params = param if isinstance(param, tuple | list) else (param,)
    return any(hasattr(each, "eqns") or hasattr(each, "jaxpr") for each in params)


def _word(step: Step | None) -> str:
    if step is None:
        return "the output"
    if step.name in _SUMS:
        return "a difference" if step.name == "sub" else "a sum"
    return _WORDS.get(step.name, step.name)
