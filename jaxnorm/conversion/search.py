"""What follows each layer of a model: read from its traced program, not from names.

From each marked output everything is followed that is an elementwise function of it: where that
ends, the function is the gate.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jaxnorm.conversion.extract import (
    SAME_ENTRIES,
    extract,
    extract_joint,
    is_activation,
    is_elementwise,
)
from jaxnorm.conversion.report import LEAVE, SLOPE_OF_VALUE, Deferred, Product, Row, gate_name
from jaxnorm.conversion.trace import Layer, Program, Step, Value, flatten

#: Only choose entries.
_PARTS = SAME_ENTRIES | {"split", "slice", "convert_element_type"}


@dataclass(eq=False)
class Cone:
    """All that is an elementwise function of one value.

    Attributes:
        source: the value.
        order: value -> how its entries are laid out in comparison with the source.
        steps: the steps inside.
        ends: values that something outside reads, or that leave the program.
        readers: what reads them.
        through: step -> its input that passes unchanged (dropout).
        source_calls: the names of the calls in which the source was made.
    """

    source: Value
    order: dict[Value, Any]
    steps: list[Step]
    ends: list[Value]
    readers: list[Step]
    through: dict[Step, Value]
    source_calls: tuple[str, ...]


def cone_of(program: Program, source: Value, parts: bool = False) -> Cone:
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
    return Cone(source, order, steps, ends, outside, through, calls)


def _layout_after(step: Step, order: dict[Value, Any]) -> Any:
    """The layout of the step's results if the step stays in the cone, or None."""
    if step.tag is not None and step.tag[0] != "returned":
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


class Found(NamedTuple):
    """What follows a value: a gate and, in words, how it was found or why there is none."""

    gate: Any
    how: str
    cone: Any = None
    unresolved: bool = False
    sum: Any = None


def follow(program: Program, source: Value) -> Found:
    """The gate that follows a value."""
    if source not in program.followed:
        program.followed[source] = _follow(program, source)
    return program.followed[source]


def _follow(program: Program, source: Value) -> Found:
    cone = cone_of(program, source)
    if not cone.ends:
        return Found(LEAVE, "its output is not used")
    gates = [extract(cone, end) for end in cone.ends]
    first = gates[0]
    if all(gate.same(first) for gate in gates[1:]):
        if not first.linear:
            return Found(first.gate, first.how, cone, unresolved=first.gate is None)
        behind = _behind_arithmetic(program, cone)
        if behind is not None:
            return behind
        return Found(None, f"no activation follows: {_readers(cone)}", cone)
    names = sorted({"others" if gate.linear else gate.name for gate in gates})
    return Found(None, f"read by {' and '.join(names)}", cone, unresolved=True)


def _behind_arithmetic(program: Program, cone: Cone) -> Found | None:
    """What is known of an activation of a sum or product, if that is all that reads the value."""
    if len(cone.ends) != 1 or cone.ends[0].output or len(cone.readers) != 1:
        return None
    (step,) = cone.readers
    if step.name not in ("add", "sub", "add_any", "mul"):
        return None
    found, how = follow(program, step.outputs[0]), ""
    if found.gate is LEAVE or (found.gate is None and not found.unresolved):
        return None
    # Of a sum of sums too: it is linear in all of them. A product is not seen in its activation.
    last = found if found.gate is not None else found.sum
    if last is not None and step.name != "mul":
        how = f"{gate_name(last.gate)} sees a sum that no module shows"
        return Found(None, how, cone, True, last)
    how = found.how if found.gate is None else gate_name(found.gate)
    return Found(None, f"behind {_WORDS[step.name]}: {how}", cone, True)


_WORDS = {
    "add": "a sum",
    "add_any": "a sum",
    "argmax": "an argmax",
    "cond": "a branch",
    "concatenate": "a concatenation",
    "conv_general_dilated": "a convolution",
    "dot_general": "a product",
    "mul": "a multiplication",
    "reduce_max": "a maximum",
    "reduce_sum": "a reduction",
    "reduce_window_max": "max pooling",
    "reduce_window_sum": "average pooling",
    "scan": "a loop",
    "slice": "a part of it",
    "split": "a split",
    "sub": "a difference",
    "while": "a loop",
}


def _readers(cone: Cone) -> str:
    words = [
        "a normalization" if step.tag else _WORDS.get(step.name, step.name) for step in cone.readers
    ]
    if any(end.output for end in cone.ends):
        words.append("the output")
    return ", ".join(dict.fromkeys(words)) or "nothing"


def search(
    closed: Any, layers: list[Layer], normalizers: list[str], modules: list[str] | None = None
) -> list[Row]:
    """The gate of every marked layer, by path.

    Args:
        closed: the traced program.
        layers: the marked calls, by number.
        normalizers: the paths of the marked normalizations, by number.
        modules: the paths of the marked returns, by number.
    """
    calls: dict[str, list[tuple[Program, Step, Layer]]] = {layer.path: [] for layer in layers}
    kernels: dict[int, Value] = {}
    outs: dict[int, list[Step]] = {}
    programs = list(flatten(closed).all())
    for program in programs:
        for step in program.steps:
            what, number = step.tag or ("", 0)
            if what == "layer":
                calls[layers[number].path].append((program, step, layers[number]))
            elif what == "kernel":
                kernels[number] = step.inputs[0]
            elif what == "out":
                outs.setdefault(number, []).append(step)

    once = {path: own[0] for path, own in calls.items() if len(own) == 1}
    found = {}
    for path, (program, step, _) in reversed(once.items()):  # so that chains of sums are not deep
        found[path] = follow(program, step.outputs[0])
    rows = []
    for path, own in calls.items():
        layer = own[0][2] if own else next(each for each in layers if each.path == path)
        why = layer.why or _cannot(own, kernels)
        if why is not None:
            rows.append(Row(path, layer.kind, LEAVE, why))
            continue
        program, step, _ = own[0]
        here = (
            _behind_normalizer(program, step, outs, normalizers, found[path])
            or _product(path, once, found)
            or _factor(found[path])
            or _joint(program, found[path])
            or found[path]
        )
        here = _applied(here, step, modules or []) or here
        how = here.how
        if _each_example(step, layer, kernels):
            how += "; under vmap: statistics of each example"
        rows.append(Row(path, layer.kind, here.gate, how, here.unresolved))
    return rows


def _cannot(own: list[tuple[Program, Step, Layer]], kernels: dict[int, Value]) -> str | None:
    """Why a layer has to be left alone, or None."""
    if not own:
        return "its output is not used"
    if len(own) > 1:
        return f"called {len(own)} times; name it in gates= to convert it"
    _, step, layer = own[0]
    number = step.tag[1] if step.tag else 0
    if number in kernels and _tied(kernels[number]):
        return "the same in every round of a loop; name it in gates= to convert it"
    samples = int(np.prod(layer.shape)) // max(layer.neurons, 1)
    if samples < 2 and _each_example(step, layer, kernels):
        return "under vmap: one example alone has no statistics"
    return None


def _each_example(step: Step, layer: Layer, kernels: dict[int, Value]) -> bool:
    """Whether a vmap over examples, which share the kernel, is around the layer."""
    kernel = kernels.get(step.tag[1]) if step.tag else None
    mapped = len(step.outputs[0].aval.shape) > len(layer.shape)
    return mapped and kernel is not None and len(kernel.aval.shape) == layer.kernel_axes


def _tied(value: Any) -> bool:
    """Whether a kernel is the same in every round of a loop around it."""
    while value.maker is not None:
        if value.maker.name not in (*SAME_ENTRIES, "convert_element_type", "mul"):
            return False
        value = value.maker.inputs[0]
    if value.outer is None and not value.fixed:
        return False
    return value.fixed or _tied(value.outer)


def _behind_normalizer(program, step, outs, normalizers, found) -> Found | None:
    """The gate behind a normalization of exactly this output, which must be all that reads it."""
    readers = step.outputs[0].users
    if step.outputs[0].output or len(readers) != 1 or readers[0].tag is None:
        return None
    what, number = readers[0].tag
    out = [each for each in outs.get(number, ()) if each.scope == step.scope]
    if (
        what != "in"
        or readers[0].scope != step.scope
        or len(out) != 1
        or out[0] not in program.steps
    ):
        return None
    name = normalizers[number]
    behind = follow(program, out[0].outputs[0])
    if behind.gate is LEAVE or behind.gate is None:
        how = f"{behind.how}, behind {name}"
        return Found(None, how, None, behind.unresolved, behind.sum)
    if out[0].outputs[0].aval.shape != step.outputs[0].aval.shape:
        return Found(None, f"{name} changes the shape", unresolved=True)
    return Found(Deferred(name, behind.gate, absolute=True), f"deferred to {name}")


def _applied(found: Found, step: Step, modules: list[str]) -> Found | None:
    """The gate of a sum, if a module around the layer returns its activation."""
    if found.sum is None or found.sum.gate not in SLOPE_OF_VALUE:
        return None
    cone = found.sum.cone
    for each in cone.steps:
        what, number = each.tag or ("", 0)
        if what != "returned" or each.scope != step.scope or cone.order[each.outputs[0]] != ():
            continue
        if each.outputs[0].aval.shape != step.outputs[0].aval.shape:
            continue
        # What is returned must be the activation itself, not what it is applied to.
        own = extract(cone, each.outputs[0])
        if own.gate == found.sum.gate and is_activation(own.gate, own.phi):
            name = modules[number]
            gate = Deferred(name, own.gate, applied=True, absolute=True)
            return Found(gate, f"deferred to {name}")
    return None


def _product(path, once, found) -> Found | None:
    """A gated unit of two layers: act(a) * b."""
    own = _multiplied(once[path], found[path])
    if own is None:
        return None
    factor, scope = own
    for other, (program, step, _) in once.items():
        if other == path or program is not once[path][0] or step.scope != once[path][1].scope:
            continue
        if _multiplied((program, step, None), found[other]) != (factor, scope):
            continue
        behind = follow(program, factor.outputs[0])
        if behind.gate is not None or behind.unresolved:
            how = f"its product with {other} has an activation, or may have one"
            return Found(None, how, unresolved=True)
        gates = [found[each].gate for each in (path, other)]
        gate = Product(gates[0], other, gates[1], absolute=True)
        return Found(gate, f"deferred, times {other}")
    return None


def _factor(found: Found) -> Found | None:
    """An activation that is multiplied by something else: only the layer's own part is known."""
    cone = found.cone
    if found.gate in (None, LEAVE) or cone is None or len(cone.readers) != 1:
        return None
    (reader,) = cone.readers
    other = [value for value in reader.inputs if value not in cone.order]
    if reader.name != "mul" or len(other) != 1 or other[0].aval.shape != cone.source.aval.shape:
        return None
    how = "multiplied by what is no layer's output, which is left out"
    return Found(found.gate, how, cone, unresolved=True)


def _multiplied(call, found) -> tuple[Step, Any] | None:
    """The one multiplication that reads the activation of a layer."""
    cone = found.cone
    if cone is None or len(cone.ends) != 1 or cone.ends[0].output or len(cone.readers) != 1:
        return None
    (reader,) = cone.readers
    if cone.through or reader.name != "mul" or cone.order[cone.ends[0]] != ():
        return None
    inputs = [value for value in reader.inputs if value is not cone.ends[0]]
    if len(inputs) != 1 or inputs[0].constant or inputs[0].aval.shape != cone.source.aval.shape:
        return None
    return reader, cone.source.aval.shape


def _joint(program: Program, found: Found) -> Found | None:
    """A gate that reads several neurons of one layer, such as both halves of a gated unit."""
    if found.gate is not None or found.cone is None:
        return None
    cone = cone_of(program, found.cone.source, parts=True)
    if len(cone.ends) != 1:
        return None
    if set(cone.steps) <= set(found.cone.steps):
        return None
    try:
        joint = extract_joint(cone, cone.ends[0])
    except NotImplementedError:
        if all(step.name in _PARTS for step in cone.steps):
            return None
        return Found(None, "a function of several entries that is no joint gate", unresolved=True)
    return None if joint is None else Found(joint[0], "joint")
