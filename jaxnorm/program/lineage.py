"""Which parameter a value of a program is, on which axes; and all that reads a parameter."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from jaxnorm.conversion.trace import Program, Step, Value
from jaxnorm.program.axes import Axes, Label, fresh, moved


class Part(NamedTuple):
    """Of parameters that are joined along an axis: where one of them is.

    Attributes:
        whole: the label of the joined axis.
        start: where the parameter begins there.
        label: its own label of that axis.
    """

    whole: Label
    start: int
    label: Label


class Lineage(NamedTuple):
    """A parameter, as a value that it is nothing but moved to.

    Attributes:
        root: the parameter, an input of the whole program.
        leaf: its axes, without those along which it is stacked.
        axes: of the value, by the same labels.
        mapped: what each of its leading axes is: the body of the loop that maps it, by where it is,
            or which entry of it was taken.
        scale: by what number it is multiplied.
        part: which part of the value it is, if it was joined with others.
    """

    root: Value
    leaf: Axes
    axes: Axes
    mapped: tuple[Any, ...]
    scale: float
    part: Part | None = None


class Family:
    """The values of a program that are parameters, moved.

    Args:
        program: the whole program.
        parameters: those of its inputs.
    """

    def __init__(self, program: Program, parameters: list[Value]) -> None:
        self.body_of: dict[Value, tuple[Program, int]] = {}
        self.inner: dict[Value, list[Value]] = {}
        for body in program.all():
            for number, value in enumerate(body.inputs):
                if body is not program:
                    self.body_of[value] = body, number
                    if value.outer is not None:
                        self.inner.setdefault(value.outer, []).append(value)
        self.parameters = set(parameters)
        self._known: dict[Value, Lineage | None] = {}

    def lineage(self, value: Value) -> Lineage | None:
        """The parameter that a value is, None if it is none, or a function of it."""
        if value not in self._known:
            self._known[value] = self._lineage(value)
        return self._known[value]

    def _lineage(self, value: Value) -> Lineage | None:
        step = value.maker
        if step is None:
            if value in self.parameters:
                axes = fresh(value.aval.shape)
                return Lineage(value, axes, axes, (), 1.0)
            return self._entering(value)
        if step.name in ("mul", "div"):
            return self._scaled(step)
        if len(step.inputs) != 1 or len(step.outputs) != 1:
            return None
        before = self.lineage(step.inputs[0])
        if before is not None and step.name == "slice":
            return _entry(before, step)
        axes = None if before is None else moved(step, before.axes)
        return None if before is None or axes is None else before._replace(axes=axes)

    def lineages(self, value: Value) -> list[Lineage]:
        """The parameter that a value is, or those that were joined to it along one axis."""
        known = self.lineage(value)
        if known is not None:
            return [known]
        step = value.maker
        if step is None or len(step.outputs) != 1:
            return []
        if step.name == "concatenate":
            return self._joined(step)
        found = self.lineages(step.inputs[0]) if len(step.inputs) == 1 else []
        axes = [moved(step, each.axes) for each in found]
        return [
            each._replace(axes=new)
            for each, new in zip(found, axes, strict=True)
            if new is not None and any(axis == (each.part.whole,) for axis in new if each.part)
        ]

    def _joined(self, step: Step) -> list[Lineage]:
        found = [self.lineage(value) for value in step.inputs]
        axis, start = step.eqn.params["dimension"], 0
        whole, joined = Label(step.outputs[0].aval.shape[axis]), []
        for each in found:
            if each is None or len(each.axes[axis]) != 1:
                return []
            (label,) = each.axes[axis]
            axes = (*each.axes[:axis], (whole,), *each.axes[axis + 1 :])
            joined.append(each._replace(axes=axes, part=Part(whole, start, label)))
            start += label.size
        return joined

    def _entering(self, value: Value) -> Lineage | None:
        """Of an input of the body of a loop."""
        body, number = self.body_of.get(value, (None, 0))
        outer = value.outer
        before = None if body is None or outer is None else self.lineage(outer)
        if body is None or outer is None or before is None:
            return None
        if body.loop == "scan":
            params = body.step.eqn.params
            constants, carried = params["num_consts"], params["num_carry"]
            if number >= constants + carried:
                if before.axes[:1] != before.leaf[:1] or any(map(_is_entry, before.mapped)):
                    return None
                leaf, axes = before.leaf[1:], before.axes[1:]
                mapped = (*before.mapped, body.scope)
                return before._replace(leaf=leaf, axes=axes, mapped=mapped)
            if number >= constants:  # carried: another one in the next round
                return None
        # (A shard of it is not the parameter.)
        return before if value.aval.shape == outer.aval.shape else None

    def _scaled(self, step: Step) -> Lineage | None:
        known = [n for n, each in enumerate(step.inputs) if _is_number(each)]
        if len(known) != 1 or (step.name == "div" and known == [0]):
            return None
        at = known[0]
        before, number = self.lineage(step.inputs[1 - at]), float(step.inputs[at].number)
        if before is None or number == 0:
            return None
        return before._replace(scale=before.scale * (1 / number if step.name == "div" else number))

    def made_of(self, value: Value) -> set[Value]:
        """The parameters that a value is a function of; none if it is one of anything else too."""
        found: set[Value] = set()
        waiting, seen = [value], {value}
        while waiting:
            each = waiting.pop()
            if each in self.parameters:
                found.add(each)
                continue
            for source in [each.outer] if each.maker is None else each.maker.inputs:
                if source is None:
                    return set()
                if not source.constant and source.number is None and source not in seen:
                    seen.add(source)
                    waiting.append(source)
        return found

    def readers(self, root: Value) -> Iterator[tuple[Step | None, Value]]:
        """What reads a parameter and does more than to move it; None: it leaves the program."""
        waiting, seen = [root], set()
        while waiting:
            value = waiting.pop()
            if value in seen:
                continue
            seen.add(value)
            if value.output:
                yield None, value
            inner = self.inner.get(value, [])
            waiting += [v for v in inner if self.lineage(v) is not None]
            for step in value.users:
                results = [v for v in step.outputs if self.lineages(v)]
                waiting += results
                # It may go into a loop twice, and only once as it is.
                into = [self.lineage(v) for v in inner if self.body_of[v][0].step is step]
                if not results and (not into or None in into):
                    yield step, value


def _is_number(value: Value) -> bool:
    return value.number is not None and value.aval.shape == ()


def _is_entry(mapped: object) -> bool:
    return isinstance(mapped, int)


def _entry(before: Lineage, step: Step) -> Lineage | None:
    """One entry of the first axis, of layers that are stacked; None for any other part."""
    params, shape = step.eqn.params, step.inputs[0].aval.shape
    start, limit = params["start_indices"], params["limit_indices"]
    whole = all(a == 0 and b == n for a, b, n in zip(start[1:], limit[1:], shape[1:], strict=True))
    one = bool(shape) and limit[0] - start[0] == 1 < shape[0] and before.axes[:1] == before.leaf[:1]
    if not whole or not one or params["strides"] is not None:
        return None
    mapped = (*before.mapped, int(start[0]))
    return before._replace(leaf=before.leaf[1:], axes=((), *before.axes[1:]), mapped=mapped)
