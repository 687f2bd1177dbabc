"""Which operations act elementwise."""

from typing import Any

from jax.extend.core import ClosedJaxpr

ELEMENTWISE = set(
    """abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt
    ceil clamp convert_element_type cos cosh digamma div eq erf erf_inv erfc exp exp2 expm1
    floor ge gt igamma igammac integer_pow is_finite le lgamma log log1p log2 logistic lt
    max min mul ne neg nextafter not one_minus_square or polygamma pow
    regularized_incomplete_beta rem round rsqrt select_n sign sin sinh sqrt square
    stop_gradient sub tan tanh xor zeta""".split()
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


#: They take some entries for their size: a maxout unit, a sorted group, the largest k.
ORDERS = {"cummax", "cummin", "reduce_max", "reduce_min", "reduce_window_max", "reduce_window_min"}
ORDERS |= {"approx_top_k", "sort", "top_k"}

#: What is known to be no activation, beside the sets above: an unknown primitive may be one.
PASSIVE = set(
    """all_gather all_gather_invariant all_to_all argmax argmin axis_index bitcast_convert_type
    cholesky clz complex concatenate cond conj conv_general_dilated cumlogsumexp cumprod cumsum
    custom_lin custom_linear_solve device_put dot_general dynamic_slice dynamic_update_slice eig
    eigh empty fft gather hessenberg householder_product imag iota linear_solve lu
    lu_pivots_to_permutation mesh_cast pad pbroadcast pdot pmax pmin population_count ppermute
    psum psum2 psum_invariant psum_scatter qr ragged_all_to_all ragged_dot ragged_dot_general
    real reduce reduce_and reduce_or reduce_prod reduce_scatter reduce_sum reduce_window
    reduce_window_sum reduce_xor reshard rng_bit_generator rng_uniform scan scatter scatter-add
    scatter-max scatter-min scatter-mul scatter-sub scatter_add scatter_max scatter_min
    scatter_mul scatter_sub schur select_and_gather_add select_and_scatter
    select_and_scatter_add shard_map shift_left shift_right_arithmetic shift_right_logical slice
    split stop_gradient svd tie tile to_edtype triangular_solve tridiagonal tridiagonal_solve
    unreduced_psum while""".split()
)


def is_unknown(name: str) -> bool:
    """Whether it is a primitive of which nothing is known: an activation, perhaps."""
    known = ELEMENTWISE | SAME_ENTRIES | CALLS | CUSTOM | ORDERS | PASSIVE
    starts = ("random_", "dot_product_attention", "jaxnorm", "debug_", "layout_")
    return name not in known and not name.startswith(starts)


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
