"""Runs of elementwise operations in a traced program, from one value to those that leave it."""

from dataclasses import dataclass
from typing import Any

from jaxnorm.conversion.elementwise import SAME_ENTRIES, is_elementwise
from jaxnorm.conversion.trace import Program, Step, Value


@dataclass(eq=False)
class Region:
    """All that is an elementwise function of one value."""

    source: Value
    order: dict[Value, Any]  # how the entries of a value are laid out, compared with the source's
    steps: list[Step]
    ends: list[Value]  # that something outside reads, or that leave the program
    readers: list[Step]  # of the ends
    through: dict[Step, Value]  # the input that passes unchanged, of dropout
    source_calls: tuple[str, ...]  # in which the source was made


def find_region(program: Program, source: Value, parts: bool = False) -> Region:
    """Follow a value as far as entries are functions of its entries, one by one.

    With `parts`, of several entries of its last axis: splits and slices are followed too.
    """
    order: dict[Value, Any] = {source: ()}
    through: dict[Step, Value] = {}
    steps, outside = [], []
    for step in program.steps:
        if not any(value in order for value in step.inputs):
            continue
        layout = () if parts and step.name in ("split", "slice") else _layout_after(step, order)
        if layout is None:
            outside.append(step)
            continue
        steps.append(step)
        passes = transparent_input(step, order)
        if passes is not None:
            through[step] = passes
        for value in step.outputs:
            order[value] = layout
    ends = [v for v in order if v.output or any(step in outside for step in v.users)]
    calls = source.maker.calls if source.maker is not None else ()
    return Region(source, order, steps, ends, outside, through, calls)


def _layout_after(step: Step, order: dict[Value, Any]) -> Any:
    """The layout of the step's results if the step stays in the region, or None."""
    if step.mark is not None and step.mark.what != "returned":
        return None
    inside = [value for value in step.inputs if value in order]
    rest = [value for value in step.inputs if value not in order]
    if step.name in SAME_ENTRIES and len(step.inputs) == 1:
        (result,) = step.outputs
        if result.aval.size != inside[0].aval.size:
            return None
        if result.aval.shape == inside[0].aval.shape and step.name not in ("rev", "transpose"):
            return order[inside[0]]
        return (*order[inside[0]], step.name, str(step.eqn.params))
    if transparent_input(step, order) is not None:
        return order[inside[0]]
    same = {(value.aval.shape, order[value]) for value in inside}
    if not is_elementwise(step.eqn) or len(same) != 1 or not all(v.constant for v in rest):
        return None
    shape, layout = same.pop()
    return layout if all(v.aval.shape == shape for v in step.outputs) else None


def transparent_input(step: Step, order: Any) -> Value | None:
    """What passes through dropout's select(mask, x, 0), else None."""
    if step.name != "select_n" or len(step.inputs) != 3 or step.inputs[0] in order:
        return None
    inside = [value for value in step.inputs[1:] if value in order]
    zeros = [value for value in step.inputs[1:] if value not in order and _is_zero(value)]
    return inside[0] if len(inside) == 1 and len(zeros) == 1 else None


def _is_zero(value: Value) -> bool:
    while value.number is None:
        if not value.constant or value.maker.name not in (*SAME_ENTRIES, "convert_element_type"):
            return False
        value = value.maker.inputs[0]
    return bool(value.number == 0)
