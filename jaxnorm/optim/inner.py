"""What an inner transformation does with parameters, read from its traced program."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import optax
from jax.core import Tracer
from jax.extend import core
from jax.interpreters import partial_eval

#: States of those that evaluate the loss at parameters of their own.
_EVALUATING = (
    "SAMState",
    "SophiaState",
    "ScaleByLBFGSState",
    "ScaleByZoomLinesearchState",
    "ScaleByBacktrackingLinesearchState",
)


class Inner(NamedTuple):
    """What one inner transformation does.

    Attributes:
        params: how its steps depend on the parameters: not at all, as an affine function (weight
            decay), or otherwise (a trust ratio).
        still: for each leaf of the steps, whether it is zero whatever the gradient
            (`optax.set_to_zero`, a rate of 0).
    """

    params: Literal["unused", "affine", "other"]
    still: list[bool]


def check_inner(inner: optax.GradientTransformation, params: Any) -> None:
    """Raise a ValueError for one that needs more than gradients."""
    state = jax.eval_shape(inner.init, params)
    leaves = jax.tree.leaves(state, is_leaf=lambda s: type(s).__name__ in _EVALUATING)
    for name in (type(leaf).__name__ for leaf in leaves):
        if name in _EVALUATING:
            raise ValueError(
                f"inner: got one with {name}, expected one that needs gradients only; it evaluates "
                "the loss at parameters of its own, which are not in the coordinates; use another "
                "one"
            )
    program = jax.make_jaxpr(inner.init)(params).jaxpr
    if any(_used(program, [True] * len(program.outvars))):
        raise ValueError(
            "inner: got one that keeps parameters in its state, expected one that needs gradients "
            "only; their coordinates change from step to step; use another one"
        )


def inspect(
    inner: optax.GradientTransformationExtraArgs,
    updates: Any,
    state: Any,
    params: Any,
    extra_args: dict[str, Any],
) -> Inner:
    """What it does with trees of these types; nothing is computed."""
    leaves, structure = jax.tree.flatten((updates, state, extra_args))
    # As arguments: what they hold now says nothing of the steps to come.
    varying = [at for at, leaf in enumerate(leaves) if isinstance(leaf, jax.Array | np.ndarray)]
    arrays = [leaves[at] for at in varying]

    def update(arrays: Any, params: Any) -> Any:
        every = dict(enumerate(leaves)) | dict(zip(varying, arrays, strict=True))
        updates, state, extra = jax.tree.unflatten(structure, every.values())
        return inner.update(updates, state, params, **extra)

    def along(arrays: Any, params: Any, tangents: Any) -> Any:
        return jax.jvp(lambda at: update(arrays, at), (params,), (tangents,), has_aux=True)

    start = jax.make_jaxpr(inner.init)(updates if params is None else params)
    ats = {at: n for n, at in enumerate(varying)}
    states = [ats.get(len(jax.tree.leaves(updates)) + n) for n in range(len(_zeros(start)))]
    if params is None:
        closed = jax.make_jaxpr(lambda arrays: update(arrays, None))(arrays)
        return Inner("unused", _still(closed, start, states))
    closed = jax.make_jaxpr(along)(arrays, params, params)
    program, first, last = closed.jaxpr, len(arrays), len(arrays) + len(jax.tree.leaves(params))
    steps, rest = len(jax.tree.leaves(updates)), [False] * len(states)
    still = _still(closed, start, states)[:steps]
    tangents = _used(program, [False] * steps + [True] * steps + rest)
    if not any(tangents[last:]):
        used = _used(program, [True] * steps + [False] * steps + rest)[first:last]
        return Inner("other" if any(used) else "unused", still)
    return Inner("other" if any(tangents[first:last]) else "affine", still)


def _still(program: Any, start: Any, states: list[int | None]) -> list[bool]:
    """Which outputs are zero in every step: states that start as zero may stay it.

    Args:
        program: of an update, whose last outputs are the states.
        start: the program that makes the first states.
        states: which of its inputs each state is.
    """
    zero = _zeros(start)
    while True:
        inputs: list[Any] = [None] * len(program.jaxpr.invars)
        for at, is_zero in zip(states, zero, strict=True):
            if at is not None and is_zero:
                inputs[at] = _ZERO
        found = _zeros(program, inputs)
        steps, after = found[: len(found) - len(zero)], found[len(found) - len(zero) :]
        if all(b or not a for a, b in zip(zero, after, strict=True)):
            return steps
        zero = [a and b for a, b in zip(zero, after, strict=True)]


def _used(program: Any, outputs: list[bool]) -> list[bool]:
    """Which inputs these outputs depend on."""
    return partial_eval.dce_jaxpr(program, outputs)[1]


#: Zero where all that goes in is.
_THROUGH_ZERO = {
    *("broadcast_in_dim", "convert_element_type", "reshape", "transpose", "neg", "copy", "squeeze"),
    *("add", "add_any", "sub", "reduce_sum", "slice", "concatenate", "stop_gradient", "sign"),
    *(
        "abs",
        "square",
        "sqrt",
        "tanh",
        "reduce_max",
        "reduce_min",
        "reduce_precision",
        "max",
        "min",
    ),
}
_ZERO = np.zeros(())


def _zeros(program: Any, inputs: Sequence[Any] | None = None) -> list[bool]:
    """Which outputs are zero, whatever comes in beside what is known of the inputs."""
    outputs = _known(program, inputs or [None] * len(program.jaxpr.invars))
    return [value is not None and not np.any(value) for value in outputs]


def _known(program: Any, inputs: Sequence[Any]) -> list[Any]:
    """What is known of each output, given that of each input: its values, None for nothing.

    In any shape: all that is asked is whether all of them are zero, or on one side of it.
    """
    known = dict(zip(program.jaxpr.invars, inputs, strict=True))
    for var, value in zip(program.jaxpr.constvars, program.consts, strict=True):
        known[var] = None if isinstance(value, Tracer) else value

    def of(var: Any) -> Any:
        return var.val if isinstance(var, core.Literal) else known.get(var)

    for equation in program.jaxpr.eqns:
        found = _known_results(equation, list(map(of, equation.invars)))
        known.update(zip(equation.outvars, found, strict=True))
    return list(map(of, program.jaxpr.outvars))


def _known_results(equation: Any, operands: list[Any]) -> list[Any]:
    """`_known`, of one equation."""
    name, inside = equation.primitive.name, equation.params.get("jaxpr")
    zero = [value is not None and not np.any(value) for value in operands]
    if name in ("pjit", "jit") and inside is not None:
        return _known(inside, operands)
    if name == "cond":  # (The first operand says which branch.)
        branches = [_known(each, operands[1:]) for each in equation.params["branches"]]
        return [
            _ZERO if all(value is not None and not np.any(value) for value in each) else None
            for each in zip(*branches, strict=True)
        ]
    if name in ("convert_element_type", "broadcast_in_dim"):
        return operands[:1]
    if name == "select_n":
        which, *cases = operands
        if which is not None and (np.all(which) or not np.any(which)) and len(cases) == 2:
            return [cases[bool(np.all(which))]]
        found = all(zero[1:])
    elif name in ("mul", "dot_general"):
        found = any(zero)
    elif name == "div":
        found = zero[0]
    elif name in ("max", "min") and any(zero) and None not in operands:
        side = np.less_equal if name == "max" else np.greater_equal
        found = all(bool(np.all(side(value, 0))) for value in operands)
    elif name == "integer_pow":
        found = zero[0] and equation.params["y"] > 0
    else:
        found = name in _THROUGH_ZERO and all(zero)
    return [_ZERO if found else None] * len(equation.outvars)
