"""Which operations act elementwise."""

from typing import Any

from jax.extend.core import ClosedJaxpr

ELEMENTWISE = set(
    """abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp
    convert_element_type cos cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt
    integer_pow is_finite le lgamma log log1p log2 logistic lt max min mul ne neg not
    one_minus_square or pow rem round rsqrt select_n sign sin sinh sqrt square stop_gradient sub tan
    tanh xor""".split()
)

#: Every entry stays what it is: only its place changes.
SAME_ENTRIES = set(
    """broadcast_in_dim copy copy_p expand_dims name optimization_barrier pcast pvary
    reduce_precision reshape rev sharding_constraint squeeze transpose""".split()
)

#: Calls of one program, opened where they are met ...
CALLS = {"jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2"}

#: ... and those with a derivative of their own, which an activation keeps.
CUSTOM = {"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"}


def body_of(eqn: Any) -> Any:
    """The program that a call opens, closed; None for anything else."""
    if eqn.primitive.name not in CALLS | CUSTOM:
        return None
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        body = eqn.params.get(name)
        if isinstance(body, ClosedJaxpr):
            return body
        if body is not None and not body.constvars:
            return ClosedJaxpr(body, ())
    return None


def is_elementwise(eqn: Any) -> bool:
    """Whether an equation is an elementwise function, or a call of one with its own derivative."""
    if eqn.primitive.name in ELEMENTWISE:
        return True
    return eqn.primitive.name in CUSTOM and _all_elementwise(body_of(eqn))


def _all_elementwise(body: Any) -> bool:
    return body is not None and all(
        eqn.primitive.name in ELEMENTWISE
        or (eqn.primitive.name in SAME_ENTRIES and eqn.invars[0].aval.size == 1)
        or (eqn.primitive.name in CALLS | CUSTOM and _all_elementwise(body_of(eqn)))
        for eqn in body.jaxpr.eqns
    )
