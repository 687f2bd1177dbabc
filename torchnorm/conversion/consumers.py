"""What a layer's output meets where no activation was found, in words that are true."""

from torchnorm.conversion.decisions import Direct
from torchnorm.conversion.elementwise import (
    ATTENTION,
    CASTS,
    DETACHED,
    ELEMENTWISE,
    INDEXED,
    LAYERS,
    MATRIX_PRODUCTS,
    NONLINEAR,
    ORDERS,
    PRODUCTS,
    REDUCTIONS,
    SELECTIONS,
    SOFTMAXES,
    TESTS,
    UNMISTAKABLE,
    VIEWS,
    is_unknown,
)
from torchnorm.conversion.region import acts_elementwise, users
from torchnorm.conversion.trace import Call, Op, Tape, Value


def no_activation(tape: Tape, z: Value) -> Direct:
    """No activation follows, or one does that cannot be reached; in words."""
    found: dict[str, None] = {}
    reached = {z}
    ordered: dict[Value, Op] = {}  # of which entries were taken for their size, and by what
    named: set[Value] = set()  # what comes behind attention is not told any more
    queue = [z]
    for value in queue:
        if value.is_output and not value.in_object and value not in named:
            found["the output"] = None
        for op in users(value):
            met = _met(op)
            if met == "another layer" and value in ordered:
                name = ordered[value].name
                reason = f"{name} follows, which takes entries for their size (a maxout unit?)"
                return Direct(None, reason, unresolved=True)
            if met is not None and value not in named:
                found[met] = None
            if met in ("another layer", "a loss"):
                continue
            if op.func is None:
                return Direct(None, f"it is {op.name}", unresolved=True)
            if is_unknown(op.name) and met is None:
                return Direct(None, unknown(op), unresolved=True)
            if op.name in UNMISTAKABLE or _activates(op, value, z, reached):
                return Direct(None, _beside(z, op), unresolved=True)
            queue += [out for out in op.outs if out not in reached]
            reached.update(op.outs)
            if met is not None or value in named:
                named.update(op.outs)
            elif all(v in ordered for v in op.ins if v in reached and v not in op.outs):
                ordered.update(dict.fromkeys(op.outs, ordered[value]))
            elif _orders(op, value):
                ordered.update(dict.fromkeys(op.outs, op))
    if not found and any(value.in_object for value in reached):
        found["the output"] = None
    if not found:
        reason = (
            "no gradient is seen to come back to its output (a custom autograd function, a "
            "compiled part, detached?)"
        )
        if tape.returned:
            reason = f"its output is not found in the {tape.returned} that the model returns"
        return Direct(None, reason, unresolved=True)
    return Direct(None, f"no activation follows: {', '.join(found)}")


def unknown(op: Op) -> str:
    """What is said of a function that is in none of the tables."""
    name = op.name.strip("_") or op.name
    return f"{name} follows, a function that is not known: it may be an activation"


def unknown_behind(value: Value) -> Op | None:
    """The unknown function that sees a value, but for its layout; None if there is none."""
    queue, seen = [value], {value}
    for each in queue:
        for op in users(each):
            if _is_strange(op):
                return op
            if op.name in VIEWS:
                queue += [out for out in op.outs if out not in seen]
                seen.update(op.outs)
    return None


def unknown_within(call: Call, tape: Tape) -> Op | None:
    """The unknown function that a module runs; None if there is none."""
    ran = (op for op in tape.ops if call.start < op.index < call.end and call in op.stack)
    return next((op for op in ran if _is_strange(op)), None)


def _is_strange(op: Op) -> bool:
    made = any(out.requires_grad or out.live for out in op.outs)
    return made and op.func is not None and is_unknown(op.name) and not _has_kernel(op)


def _orders(op: Op, value: Value) -> bool:
    """Whether an operation takes entries of a value for their size, along an axis."""
    if op.name == "scatter_reduce":
        return any(arg in ("amax", "amin") for arg in (*op.args, *op.kwargs.values()))
    return op.name in ORDERS and not acts_elementwise(op) and value.numel > op.outs[0].numel // 2


def _activates(op: Op, value: Value, z: Value, reached: set[Value]) -> bool:
    """Whether an operation that means nothing within a normalization or a loss is an activation.

    There it is summed over an axis, or applied to such a sum.
    """
    if op.name in INDEXED and any(_is_mask(v, reached) for v in op.ins):
        return True
    if op.outs[0].shape != value.shape:
        return False
    if op.name in SELECTIONS | PRODUCTS and any(_is_mask(v, reached) for v in op.ins):
        return True
    if op.name in ("max", "min"):  # of two tensors
        return len(set(op.ins)) > 1
    if op.name not in NONLINEAR:
        return False
    if any(v.numel == 1 and v not in reached for v in op.ins) and value.shape == z.shape:
        return True  # with a tensor for its constant: maximum(z, buffer)
    if op.name in SELECTIONS or value.numel < z.numel:
        return False
    return any(
        out.is_output or any(user.name not in REDUCTIONS for user in users(out)) for out in op.outs
    )


def _is_mask(value: Value, reached: set[Value], depth: int = 6) -> bool:
    """Whether a value says where others, that were reached, are large: z > 0."""
    op = value.maker
    if (
        op is None
        or depth == 0
        or op.name not in TESTS | CASTS | DETACHED | {"bucketize"}
        or value in reached
    ):
        return False
    return any(v in reached or _is_mask(v, reached, depth - 1) for v in op.ins)


def _met(op: Op) -> str | None:
    """What the report calls an operation that is no activation, but more than arithmetic."""
    name = op.name
    if name in LAYERS or _has_kernel(op):
        return "another layer"
    if "loss" in name or "cross_entropy" in name:
        return "a loss"
    # Both factors are of this pass: neither is a matrix of the data, as that of a graph.
    if name in ATTENTION and (name not in MATRIX_PRODUCTS or all(v.live for v in op.ins)):
        return "attention"
    return "a softmax" if name in SOFTMAXES else None


def _has_kernel(op: Op) -> bool:
    """Whether an operation multiplies by a matrix of parameters, whatever its name is."""
    kernels = [v for v in op.ins if v.parameter and len(v.shape) > 1]
    # _grouped_mm, _scaled_mm; but not with the matrix of a graph.
    products = op.name.endswith("_mm") and all(v.live for v in op.ins if len(v.shape) > 1)
    return products or (bool(kernels) and op.name not in ELEMENTWISE)


def _beside(value: Value, activation: Op) -> str:
    """Where an activation is that is not the only thing which the value meets."""
    name = activation.name.strip("_")
    names = [op.name.strip("_") for op in users(value)]
    others = [other for other in dict.fromkeys(names) if other != name][:3]
    if others:
        return f"{name} follows behind or beside {', '.join(others)}"
    if value.is_output:
        return f"{name} follows, and the model returns what it sees as well"
    if len(names) > 1:
        return f"{name} follows, in {len(names)} places"
    if any(out.users or out.is_output for out in activation.outs):
        return f"{name} follows, in a form that is not recognized"
    return f"{name} follows, but what it returns is not used"
