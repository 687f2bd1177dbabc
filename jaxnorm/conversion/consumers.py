"""What a layer's output meets where no activation was found, in words that are true."""

from typing import Any

from jaxnorm.conversion.elementwise import CUSTOM, ORDERS, body_of, is_unknown
from jaxnorm.conversion.trace import Program, Step, Value, origin

#: Functions of `jax.nn`, as a traced program calls them.
_ACTIVATIONS = frozenset(
    "relu relu6 silu swish gelu leaky_relu elu selu celu softplus mish hard_tanh hard_sigmoid "
    "hard_silu hard_swish log_sigmoid soft_sign squareplus sparse_plus sparse_sigmoid glu "
    "sigmoid".split()
)
#: Primitives that no normalization and no softmax is made of.
_PRIMITIVES = frozenset("tanh logistic erf sin cos atan".split())
_COMPARISONS = {"gt", "ge", "lt", "le"}
_PRODUCTS = {"dot_general", "conv_general_dilated", "ragged_dot_general"}

WORDS = {
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


def word(step: Step) -> str:
    """What the report calls a step."""
    return "a normalization" if step.mark else WORDS.get(step.name, step.name)


def called(step: Step) -> list[str]:
    """The functions that a step is in, and those that it consists of."""
    inner = body_of(step.eqn) if step.name in CUSTOM else None
    equations = [step.eqn, *(() if inner is None else inner.jaxpr.eqns)]
    names = [*step.calls, *(str(eqn.params.get("name", "")) for eqn in equations)]
    return [name for name in names if name]


def missed(source: Value, inner: dict[Value, list[Value]], outer: dict[Value, Any]) -> str | None:
    """The activation that something sees which was computed from a value, if there is one.

    Args:
        source: the value.
        inner: of what goes into loops, what it is there.
        outer: of what leaves a loop, what it is behind it.
    """
    seen, queue = {source}, [source]
    ordered: dict[Value, Step] = {}  # of which entries were taken for their size, and by what
    for value in queue:
        for step in value.users:
            if _is_layer(step, value):
                if value in ordered:
                    return f"{ordered[value].name}, which takes entries for their size,"
                continue
            if is_strange(step):
                return f"{step.name}, which is not known,"
            name = _activation(step, source, seen)
            if name is not None:
                return name
            if all(each in ordered for each in step.inputs if each in seen):
                ordered.update(dict.fromkeys(step.outputs, ordered[value]))
            elif step.name in ORDERS:
                ordered.update(dict.fromkeys(step.outputs, step))
            queue += [out for out in step.outputs if out not in seen]
            seen.update(step.outputs)
        beyond = [*inner.get(value, ()), *outer.get(value, ())]
        queue += [each for each in beyond if each not in seen]
        seen.update(beyond)
    return None


def is_strange(step: Step) -> bool:
    """Whether nothing is known of what a step does, and something goes on with it."""
    used = any(value.users or value.output for value in step.outputs)
    return used and step.mark is None and is_unknown(step.name)


def _is_layer(step: Step, value: Value) -> bool:
    """Whether a step multiplies the value's features by a matrix that was given."""
    if step.name not in _PRODUCTS or len(step.inputs) < 2 or step.inputs[0] is step.inputs[1]:
        return False
    at = step.inputs.index(value)
    computed, _ = origin(step.inputs[1 - at])
    if step.name != "dot_general":
        return not computed
    contracted = step.eqn.params["dimension_numbers"][0][at]
    return not computed and any(axis > 0 for axis in contracted)


def _activation(step: Step, source: Value, seen: set[Value]) -> str | None:
    for name in called(step):
        if name.strip("_") in _ACTIVATIONS:
            return name.strip("_")
    if step.name in _PRIMITIVES:
        return step.name
    if step.outputs[0].aval.size < source.aval.size:
        return None
    if step.name in ("max", "min", "clamp"):
        constant = any(value.constant for value in step.inputs)
        return ("relu" if step.name == "max" else step.name) if constant else None
    if step.name == "select_n" and step.inputs[0] in seen:
        maker = step.inputs[0].maker
        return "where" if maker is not None and maker.name in _COMPARISONS else None
    return None


def beyond(program: Program) -> tuple[dict[Value, list[Value]], dict[Value, list[Value]]]:
    """(what values are within loops that they go into, what they are behind those they leave)."""
    inner: dict[Value, list[Value]] = {}
    outer: dict[Value, list[Value]] = {}
    for each in program.all():
        step = each.step
        if step is None:
            continue
        for value in each.inputs:
            if value.outer is not None:
                inner.setdefault(value.outer, []).append(value)
        if step.name == "while":  # which is which does not matter: it is not told there
            for value in step.inputs:
                inner.setdefault(value, []).extend(each.inputs)
        carried = step.eqn.params.get("num_carry", 0) if step.name == "scan" else 0
        first = step.eqn.params.get("num_consts", 0)
        for number, value in enumerate(each.outputs):
            again = [each.inputs[first + number]] if number < carried else []
            there = step.outputs[number : number + 1] if step.name in ("scan", "cond") else []
            there = there or step.outputs
            outer.setdefault(value, []).extend([*again, *there])
    return inner, outer
