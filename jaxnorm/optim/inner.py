"""What an inner transformation does with parameters, read from its traced program."""

from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import optax
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
    if params is None:
        program = jax.make_jaxpr(lambda: inner.update(updates, state, None, **extra_args)[0])()
        return Inner("unused", _zeros(program.jaxpr))

    def update(params: Any) -> Any:
        return inner.update(updates, state, params, **extra_args)[0]

    def along(params: Any, tangents: Any) -> Any:
        return jax.jvp(update, (params,), (tangents,))

    program = jax.make_jaxpr(along)(params, params).jaxpr
    steps, count = len(program.outvars) // 2, len(program.invars) // 2
    still = _zeros(program)[:steps]
    if not any(_used(program, [False] * steps + [True] * steps)[count:]):
        used = any(_used(program, [True] * steps + [False] * steps)[:count])
        return Inner("other" if used else "unused", still)
    used = _used(program, [False] * steps + [True] * steps)[:count]
    return Inner("other" if any(used) else "affine", still)


def _used(program: Any, outputs: list[bool]) -> list[bool]:
    """Which inputs these outputs depend on."""
    return partial_eval.dce_jaxpr(program, outputs)[1]


#: Zero where all that goes in is, and where one factor is.
_LINEAR = {
    *("broadcast_in_dim", "convert_element_type", "reshape", "transpose", "neg", "copy", "squeeze"),
    *("add", "add_any", "sub", "reduce_sum", "slice", "concatenate", "stop_gradient", "select_n"),
}


def _zeros(program: Any, given: Any = None) -> list[bool]:
    """Which outputs are zero for all inputs but those known to be zero."""
    zero = dict(zip(program.invars, given or [False] * len(program.invars), strict=True))

    def is_zero(value: Any) -> bool:
        if isinstance(value, core.Literal):
            return not np.any(np.asarray(value.val))
        return zero.get(value, False)

    for equation in program.eqns:
        ins = list(map(is_zero, equation.invars))
        name, inside = equation.primitive.name, equation.params.get("jaxpr")
        if name in ("pjit", "jit") and inside is not None:
            outs = _zeros(inside.jaxpr, ins)
        elif name in ("mul", "dot_general"):
            outs = [any(ins)]
        elif name == "div":
            outs = [ins[0]]
        else:
            # (The first operand of a selection says which of the others.)
            outs = [name in _LINEAR and all(ins[1:] if name == "select_n" else ins)]
            outs *= len(equation.outvars)
        zero.update(zip(equation.outvars, outs, strict=True))
    return list(map(is_zero, program.outvars))
