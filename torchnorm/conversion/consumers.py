"""What a layer's output meets where no activation was found, in words that are true."""

from torchnorm.conversion.decisions import Direct
from torchnorm.conversion.elementwise import (
    ATTENTION,
    CASTS,
    ELEMENTWISE,
    LAYERS,
    MATRIX_PRODUCTS,
    NONLINEAR,
    PRODUCTS,
    REDUCTIONS,
    SELECTIONS,
    SOFTMAXES,
    TESTS,
    UNMISTAKABLE,
)
from torchnorm.conversion.region import users
from torchnorm.conversion.trace import Op, Tape, Value


def no_activation(tape: Tape, z: Value) -> Direct:
    """No activation follows, or one does that cannot be reached; in words."""
    found: dict[str, None] = {}
    reached = {z}
    named: set[Value] = set()  # what comes behind attention is not told any more
    queue = [z]
    for value in queue:
        if value.is_output and not value.in_object and value not in named:
            found["the output"] = None
        for op in users(value):
            met = _met(op)
            if met is not None and value not in named:
                found[met] = None
            if met in ("another layer", "a loss"):
                continue
            if op.func is None:
                return Direct(None, f"it is {op.name}", unresolved=True)
            if op.name in UNMISTAKABLE or _activates(op, value, z, reached):
                return Direct(None, _beside(z, op), unresolved=True)
            queue += [out for out in op.outs if out not in reached]
            reached.update(op.outs)
            if met is not None or value in named:
                named.update(op.outs)
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


def _activates(op: Op, value: Value, z: Value, reached: set[Value]) -> bool:
    """Whether an operation that means nothing within a normalization or a loss is an activation.

    There it is summed over an axis, or applied to such a sum.
    """
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


def _is_mask(value: Value, reached: set[Value], depth: int = 3) -> bool:
    """Whether a value says where others, that were reached, are large: z > 0."""
    op = value.maker
    if op is None or depth == 0 or op.name not in TESTS | CASTS or value in reached:
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
