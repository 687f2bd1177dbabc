"""What follows each layer of a model: read from its traced program, not from names.

From each marked output everything is followed that is an elementwise function of it.
"""

from typing import Any

import numpy as np

from jaxnorm.activations import JointGate
from jaxnorm.conversion.decisions import LEAVE, SLOPE_OF_VALUE, Deferred, Product, Several
from jaxnorm.conversion.elementwise import SAME_ENTRIES
from jaxnorm.conversion.extract import extract, extract_joint, is_activation
from jaxnorm.conversion.follow import Follower, Found
from jaxnorm.conversion.moves import Moved
from jaxnorm.conversion.region import find_region
from jaxnorm.conversion.report import Row, gate_name
from jaxnorm.conversion.trace import Layer, Program, Step, Traced, Value, flatten, origin

#: Only choose entries.
_PARTS = SAME_ENTRIES | {"split", "slice", "convert_element_type"}


def search(
    traced: Traced, layers: list[Layer], *, recorded: bool = True, anywhere: bool = False
) -> list[Row]:
    """The gate of every marked layer, by path.

    Args:
        traced: the program.
        layers: the marked calls, by number.
        recorded: whether the statistics are recorded, and so add up over calls and what is mapped.
        anywhere: whether a layer can be told its gate at a normalization of something else than its
            very output: of a part of it, dropped out, pooled, concatenated with others.
    """
    calls: dict[str, list[tuple[Program, Step, Layer]]] = {layer.path: [] for layer in layers}
    kernels: dict[int, Value] = {}
    whole = flatten(traced)
    for program in whole.all():
        for step in program.steps:
            what, number, path = step.mark or ("", 0, "")
            if what == "layer":
                calls[path].append((program, step, layers[number]))
            elif what == "kernel":
                kernels[number] = step.inputs[0]

    follower = Follower(whole)
    once = {path: places[0] for path, places in calls.items() if len(places) == 1}
    found: dict[str, list[Found]] = {}
    for path, places in reversed(calls.items()):  # so that chains of sums are not deep
        for program, step, _ in reversed(places):
            here = follower.follow(program, step.outputs[0])
            found.setdefault(path, []).insert(0, here)
    single = {path: found[path][0] for path in once}
    rows = []
    for path, places in calls.items():
        layer = places[0][2] if places else next(each for each in layers if each.path == path)
        why = layer.why or _why_not(places, kernels, recorded)
        if why is not None:
            rows.append(Row(path, layer.kind, LEAVE, why))
            continue
        decided = []
        for (program, step, layer), each in zip(places, found[path], strict=True):
            here = (
                (_product(path, once, single, follower) if path in once else None)
                or _factor(each)
                or _joint(program, each)
                or _pooled(each, layer)
                or _told(each, step, layer, follower if anywhere else None)
                or each
            )
            decided.append((_applied(here, step) or here)._replace(lines=each.lines))
        here = decided[0] if len(decided) == 1 else _of_calls(decided)
        reason = here.reason
        if not recorded and _each_example(places[0][1], layer, kernels):
            reason += "; under vmap: statistics of each example"
        shape = f"  its output -> {list(places[0][1].outputs[0].aval.shape)}"
        rows.append(
            Row(
                path,
                layer.kind,
                here.gate,
                reason,
                here.unresolved,
                repeated=len(places) > 1 or _in_rounds(places[0][1], kernels),
                way=(shape, *here.lines),
            )
        )
    return rows


def _of_calls(decided: list[Found]) -> Found:
    """What several calls of one layer meet, if that is the same."""
    first, count, times = decided[0], len(decided), f"in each of {len(decided)} calls"
    missed = [each for each in decided if each.unresolved]
    names = list(dict.fromkeys(gate_name(each.gate) for each in decided))
    same = all(each.gate == first.gate for each in decided) or len(names) == 1
    deferred = any(isinstance(each.gate, Deferred | Several | Product) for each in decided)
    if missed:
        found = Found(None, f"in one of {count} calls: {missed[0].reason}", unresolved=True)
    elif same and not (deferred and len({each.reason for each in decided}) > 1):
        reasons = "; ".join(dict.fromkeys(each.reason for each in decided))
        found = Found(first.gate, f"{reasons}, {times}")
    else:
        shown = "it is told each elsewhere" if len(names) == 1 else ", ".join(names)
        reason = f"called {count} times, not with one gate: {shown}"
        found = Found(None, reason, unresolved=True)
    lines = [
        line
        for number, each in enumerate(decided, 1)
        for line in (f"  call {number} of {count}:", *each.lines)
    ]
    return found._replace(lines=tuple(lines))


def _why_not(
    places: list[tuple[Program, Step, Layer]], kernels: dict[int, Value], recorded: bool
) -> str | None:
    """Why a layer has to be left alone, or None."""
    if not places:
        return "its output is not used"
    if len(places) > 1 and not recorded:
        return f"called {len(places)} times in one forward pass; name it in gates= to convert it"
    _, step, layer = places[0]
    kernel = kernels.get(step.mark.number) if step.mark else None
    computed, turned = (False, False) if kernel is None else origin(kernel)
    if computed:
        return "its kernel is a function of other parameters"
    if turned:
        return "its kernel is a parameter with its axes in another order"
    if not recorded and _in_rounds(step, kernels):
        return "the same in every round of a loop; name it in gates= to convert it"
    samples = int(np.prod(layer.shape)) // max(layer.neurons, 1)
    if not recorded and samples < 2 and _each_example(step, layer, kernels):
        return "under vmap: one example alone has no statistics"
    return None


def _in_rounds(step: Step, kernels: dict[int, Value]) -> bool:
    """Whether a loop around a layer has the same kernel in every round."""
    kernel = kernels.get(step.mark.number) if step.mark else None
    return kernel is not None and _tied(kernel)


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


def _told(found: Found, step: Step, layer: Layer, follower: Follower | None) -> Found | None:
    """The gate that a layer is told at normalizations; None if there is none.

    Args:
        found: what follows the layer.
        step: the mark of its output.
        layer: the layer.
        follower: who followed; None where the normalization must be one of the very output.
    """
    if not any(place.at for place in found.places):
        return None
    readers, name = step.outputs[0].users, gate_name(found.gate)
    exact = len(readers) == 1 and readers[0].mark is not None and readers[0].mark.what == "in"
    if any(place.at and place.scope != step.scope for place in found.places):
        return Found(None, f"{name} sees it in another loop or branch", unresolved=True)
    if exact and len(found.places) == 1:
        (place,) = found.places
        return found._replace(gate=Deferred(place.at, place.gate, absolute=True))
    if follower is None:
        at = next(place.at for place in found.places if place.at)
        reason = f"{name} sees what {at} makes of more than the output itself"
        return Found(None, reason, unresolved=True)
    if any(follower.times(place.at) > 1 for place in found.places):
        return Found(None, f"{name} follows a normalization that is called twice", unresolved=True)
    if len(step.outputs[0].aval.shape) > len(layer.shape):
        return Found(None, f"{name} follows, {found.reason}, under vmap", unresolved=True)
    parts = tuple(
        Deferred(place.at, place.gate, absolute=True, moves=place.moves) for place in found.places
    )
    return found._replace(gate=parts[0] if len(parts) == 1 else Several(parts))


def _pooled(found: Found, layer: Layer) -> Found | None:
    """A gate of a convolution that reads pooled or cropped entries."""
    if not found.unresolved or not found.places or any(place.at for place in found.places):
        return None
    if layer.kind not in ("Conv", "ConvTranspose"):
        return None
    names = " and ".join(dict.fromkeys(gate_name(place.gate) for place in found.places))
    gate = JointGate(Moved(tuple((place.moves, place.gate) for place in found.places), names))
    return Found(gate, "joint")


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


def _product(
    path: str, once: dict[str, Any], found: dict[str, Found], follower: Follower
) -> Found | None:
    """A gated unit of two layers: act(a) * b."""
    factor = _multiplied(found[path])
    if factor is None:
        return None
    for other, (program, step, _) in once.items():
        if other == path or program is not once[path][0] or step.scope != once[path][1].scope:
            continue
        if _multiplied(found[other]) is not factor:
            continue
        behind = follower.follow(program, factor.outputs[0])
        if behind.gate is not None or (behind.unresolved and not behind.mixed):
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
