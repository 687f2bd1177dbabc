"""What follows each layer of a model: read from its traced program, not from names.

From each marked output everything is followed that is an elementwise function of it: where that
ends, the function is the gate.
"""

from typing import Any, NamedTuple

import numpy as np

from jaxnorm.conversion.decisions import LEAVE, SLOPE_OF_VALUE, Deferred, Product
from jaxnorm.conversion.elementwise import SAME_ENTRIES
from jaxnorm.conversion.extract import extract, extract_joint, is_activation
from jaxnorm.conversion.region import Region, find_region
from jaxnorm.conversion.report import Row, gate_name
from jaxnorm.conversion.trace import Layer, Program, Step, Traced, Value, flatten, origin

#: Only choose entries.
_PARTS = SAME_ENTRIES | {"split", "slice", "convert_element_type"}


class Found(NamedTuple):
    """What follows a value: a gate and, in words, where it was found or why there is none."""

    gate: Any
    reason: str
    region: Any = None
    unresolved: bool = False
    sum: Any = None


def search(traced: Traced, layers: list[Layer], *, recorded: bool = True) -> list[Row]:
    """The gate of every marked layer, by path.

    Args:
        traced: the program.
        layers: the marked calls, by number.
        recorded: whether the statistics are recorded, and so count what is mapped too.
    """
    calls: dict[str, list[tuple[Program, Step, Layer]]] = {layer.path: [] for layer in layers}
    kernels: dict[int, Value] = {}
    outs: dict[int, list[Step]] = {}
    for program in flatten(traced).all():
        for step in program.steps:
            what, number, path = step.mark or ("", 0, "")
            if what == "layer":
                calls[path].append((program, step, layers[number]))
            elif what == "kernel":
                kernels[number] = step.inputs[0]
            elif what == "out":
                outs.setdefault(number, []).append(step)

    once = {path: places[0] for path, places in calls.items() if len(places) == 1}
    found = {}
    for path, (program, step, _) in reversed(once.items()):  # so that chains of sums are not deep
        found[path] = follow(program, step.outputs[0])
    rows = []
    for path, places in calls.items():
        layer = places[0][2] if places else next(each for each in layers if each.path == path)
        why = layer.why or _why_not(places, kernels, recorded)
        if why is not None:
            rows.append(Row(path, layer.kind, LEAVE, why))
            continue
        program, step, _ = places[0]
        here = (
            _behind_normalization(program, step, outs, found[path])
            or _product(path, once, found)
            or _factor(found[path])
            or _joint(program, found[path])
            or found[path]
        )
        here = _applied(here, step) or here
        reason = here.reason
        if not recorded and _each_example(step, layer, kernels):
            reason += "; under vmap: statistics of each example"
        rows.append(Row(path, layer.kind, here.gate, reason, here.unresolved))
    return rows


def follow(program: Program, source: Value) -> Found:
    """The gate that follows a value."""
    if source not in program.followed:
        program.followed[source] = _follow(program, source)
    return program.followed[source]


def _follow(program: Program, source: Value) -> Found:
    region = find_region(program, source)
    if not region.ends:
        return Found(LEAVE, "its output is not used")
    gates = [extract(region, end) for end in region.ends]
    first = gates[0]
    if all(gate.same(first) for gate in gates[1:]):
        if not first.linear:
            if first.gate is None:
                return Found(None, f"read by {first.name}", region, unresolved=True)
            return Found(first.gate, "direct", region)
        if any(end.hidden for end in region.ends):
            names = ", ".join(program.opaque)
            reason = f"it may be in an object in the output that is no pytree: {names}"
            return Found(None, reason, region, unresolved=True)
        behind = _behind_arithmetic(program, region)
        if behind is not None:
            return behind
        return Found(None, f"no activation follows: {_readers(region)}", region)
    names = sorted({"others" if gate.linear else gate.name for gate in gates})
    return Found(None, f"read by {' and '.join(names)}", region, unresolved=True)


def _behind_arithmetic(program: Program, region: Region) -> Found | None:
    """What is known of an activation of a sum or product, if that is all that reads the value."""
    if len(region.ends) != 1 or region.ends[0].output or len(region.readers) != 1:
        return None
    (step,) = region.readers
    if step.name not in ("add", "sub", "add_any", "mul"):
        return None
    found, reason = follow(program, step.outputs[0]), ""
    if found.gate is LEAVE or (found.gate is None and not found.unresolved):
        return None
    # Of a sum of sums too: it is linear in all of them. A product is not seen in its activation.
    last = found if found.gate is not None else found.sum
    if last is not None and step.name != "mul":
        reason = f"{gate_name(last.gate)} sees a sum that no module shows"
        return Found(None, reason, region, True, last)
    reason = found.reason if found.gate is None else gate_name(found.gate)
    return Found(None, f"behind {_WORDS[step.name]}: {reason}", region, True)


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


def _readers(region: Region) -> str:
    words = [
        "a normalization" if step.mark else _WORDS.get(step.name, step.name)
        for step in region.readers
    ]
    if any(end.output for end in region.ends):
        words.append("the output")
    return ", ".join(dict.fromkeys(words)) or "nothing"


def _why_not(
    places: list[tuple[Program, Step, Layer]], kernels: dict[int, Value], recorded: bool
) -> str | None:
    """Why a layer has to be left alone, or None."""
    if not places:
        return "its output is not used"
    if len(places) > 1:
        return f"called {len(places)} times in one forward pass; name it in gates= to convert it"
    _, step, layer = places[0]
    kernel = kernels.get(step.mark.number) if step.mark else None
    computed, turned = (False, False) if kernel is None else origin(kernel)
    if computed:
        return "its kernel is a function of other parameters"
    if turned:
        return "its kernel is a parameter with its axes in another order"
    if kernel is not None and _tied(kernel):
        return "the same in every round of a loop; name it in gates= to convert it"
    samples = int(np.prod(layer.shape)) // max(layer.neurons, 1)
    if not recorded and samples < 2 and _each_example(step, layer, kernels):
        return "under vmap: one example alone has no statistics"
    return None


def _each_example(step: Step, layer: Layer, kernels: dict[int, Value]) -> bool:
    """Whether a vmap over examples, which share the kernel, is around the layer."""
    kernel = kernels.get(step.mark.number) if step.mark else None
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


def _behind_normalization(
    program: Program, step: Step, outs: dict[int, list[Step]], found: Found
) -> Found | None:
    """The gate behind a normalization of exactly this output, which must be all that reads it."""
    readers = step.outputs[0].users
    if step.outputs[0].output or len(readers) != 1 or readers[0].mark is None:
        return None
    what, number, name = readers[0].mark
    out = [each for each in outs.get(number, ()) if each.scope == step.scope]
    if what != "in" or readers[0].scope != step.scope or len(out) != 1:
        return None
    if out[0] not in program.steps:
        return None
    behind = follow(program, out[0].outputs[0])
    if behind.gate is LEAVE or behind.gate is None:
        reason = f"{behind.reason}, behind {name}"
        return Found(None, reason, None, behind.unresolved, behind.sum)
    if out[0].outputs[0].aval.shape != step.outputs[0].aval.shape:
        return Found(None, f"{name} changes the shape", unresolved=True)
    return Found(Deferred(name, behind.gate, absolute=True), f"deferred to {name}")


def _applied(found: Found, step: Step) -> Found | None:
    """The gate of a sum, if a module around the layer returns its activation."""
    if found.sum is None or found.sum.gate not in SLOPE_OF_VALUE:
        return None
    region = found.sum.region
    for each in region.steps:
        what, _, name = each.mark or ("", 0, "")
        value = each.outputs[0]
        if what != "returned" or each.scope != step.scope or region.order[value] != ():
            continue
        if value.aval.shape != step.outputs[0].aval.shape:
            continue
        # What is returned must be the activation itself, not what it is applied to.
        returned = extract(region, value)
        if returned.gate == found.sum.gate and is_activation(returned.gate, returned.phi):
            gate = Deferred(name, returned.gate, applied=True, absolute=True)
            return Found(gate, f"deferred to {name}")
    return None


def _product(path: str, once: dict[str, Any], found: dict[str, Found]) -> Found | None:
    """A gated unit of two layers: act(a) * b."""
    factor = _multiplied(found[path])
    if factor is None:
        return None
    for other, (program, step, _) in once.items():
        if other == path or program is not once[path][0] or step.scope != once[path][1].scope:
            continue
        if _multiplied(found[other]) is not factor:
            continue
        behind = follow(program, factor.outputs[0])
        if behind.gate is not None or behind.unresolved:
            reason = f"its product with {other} has an activation, or may have one"
            return Found(None, reason, unresolved=True)
        gates = [found[each].gate for each in (path, other)]
        gate = Product(gates[0], other, gates[1], absolute=True)
        return Found(gate, f"gated with {other}")
    return None


def _factor(found: Found) -> Found | None:
    """An activation that is multiplied by something else: only the layer's own part is known."""
    region = found.region
    if found.gate in (None, LEAVE) or region is None or len(region.readers) != 1:
        return None
    (reader,) = region.readers
    other = [value for value in reader.inputs if value not in region.order]
    if reader.name != "mul" or len(other) != 1 or other[0].aval.shape != region.source.aval.shape:
        return None
    reason = "multiplied by what is no layer's output, which is left out"
    return Found(found.gate, reason, region, unresolved=True)


def _multiplied(found: Found) -> Step | None:
    """The one multiplication that reads the activation of a layer."""
    region = found.region
    if region is None or len(region.ends) != 1 or region.ends[0].output or len(region.readers) != 1:
        return None
    (reader,) = region.readers
    if region.through or reader.name != "mul" or region.order[region.ends[0]] != ():
        return None
    inputs = [value for value in reader.inputs if value is not region.ends[0]]
    if len(inputs) != 1 or inputs[0].constant or inputs[0].aval.shape != region.source.aval.shape:
        return None
    return reader


def _joint(program: Program, found: Found) -> Found | None:
    """A gate that reads several neurons of one layer, such as both halves of a gated unit."""
    if found.gate is not None or found.region is None:
        return None
    region = find_region(program, found.region.source, parts=True)
    if len(region.ends) != 1 or set(region.steps) <= set(found.region.steps):
        return None
    try:
        joint = extract_joint(region, region.ends[0])
    except NotImplementedError:
        if all(step.name in _PARTS for step in region.steps):
            return None
        return Found(None, "a function of several entries that is no joint gate", unresolved=True)
    return None if joint is None else Found(joint[0], "joint")
