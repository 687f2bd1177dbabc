"""Values that are handed on, and what is taken beside them: `handed_on`.

An identity whose derivatives, of every order and in either mode, are JAX's; but in the reverse pass
something else, `extra`, gets a gradient that is made of whatever the values get. Not a custom_vjp:
that refuses forward mode, and a derivative by the input inside of a loss (the Laplacian of a
physics-informed network, a gradient penalty) differentiates its rules, not the function.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


def handed_on(
    residuals_of: Callable[..., Any], pull: Callable[..., Any], values: Any, extra: Any, inputs: Any
) -> Any:
    """The values. Where they have a gradient, `extra` has pull(residuals, that gradient).

    Once for each call, whatever order of derivative of the values it is that has a gradient: of a
    loss of du/dx it may be that of the tangent alone.

    Args:
        residuals_of: (values, extra, inputs) -> residuals, called only where extra is
            differentiated. Both functions are static, and close over no traced value.
        pull: (residuals, gradient of the values, position) -> gradient of extra, any function of
            these. The position, uint32, tells calls apart that `jax.vmap` has made of one; 0
            without it.
        values: a tree of arrays, not empty.
        extra: a tree of floating arrays.
        inputs: a tree of arrays, to which no gradient flows.
    """
    return _handed_on(residuals_of, pull, values, extra, inputs)[0]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _handed_on(residuals_of, pull, values, extra, inputs):
    """(values, token): the token is 1, and every tangent of the values a product with it."""
    del residuals_of, pull, extra, inputs
    return values, jnp.ones(())


@functools.partial(_handed_on.defjvp, symbolic_zeros=True)
def _jvp(residuals_of, pull, primals, tangents):
    values, extra, inputs = primals
    # Not the values as they are: whoever differentiates what follows is to find this rule again.
    values, token = _handed_on(residuals_of, pull, values, extra, inputs)
    t_values, t_extra, _ = tangents
    leaves, structure = jax.tree.flatten(t_extra, is_leaf=_is_zero)
    if all(map(_is_zero, leaves)):
        # The gradient of the tangent comes back to the token, and with it to this call.
        tied = lambda t: t if _is_zero(t) else t * token.astype(t.dtype)  # noqa: E731
        t_values = jax.tree.map(tied, t_values, is_leaf=_is_zero)
        return (values, token), (t_values, _no(token))
    residuals = residuals_of(values, extra, inputs)
    t_out, out_structure = jax.tree.flatten(
        jax.tree.map(_instantiated, (t_values, _no(token)), is_leaf=_is_zero)
    )
    flat_residuals, residual_structure = jax.tree.flatten(residuals)

    def flat_pull(residuals, gradients, position):
        residuals = jax.tree.unflatten(residual_structure, residuals)
        g_values, _ = jax.tree.unflatten(out_structure, gradients)
        found = pull(residuals, g_values, position)
        assert jax.tree.structure(found) == structure
        return jax.tree.leaves(found)

    counts = len(t_out), len(leaves)
    linear = _linear_p.bind(
        *t_out, *map(_instantiated, leaves), *flat_residuals, counts=counts, pull=flat_pull
    )
    return (values, token), jax.tree.unflatten(out_structure, linear)


def _is_zero(tangent):
    return isinstance(tangent, SymbolicZero)


def _no(value):
    return SymbolicZero.from_primal_value(value)


def _instantiated(tangent):
    return ad.instantiate_zeros(ad.Zero(tangent.aval)) if _is_zero(tangent) else tangent


#: So far apart are the positions of two examples, for those that are mapped within each.
_FAR_APART = 0x01000193
#: (*values, *extra, *residuals) -> values; linear in the first two, and not in its transpose.
_linear_p = Primitive("neuronwise_beside")
_linear_p.multiple_results = True


def _values(*args, counts, pull):
    del pull
    return list(args[: counts[0]])


_linear_p.def_impl(_values)
_linear_p.def_abstract_eval(_values)
mlir.register_lowering(_linear_p, mlir.lower_fun(_values, multiple_results=True))


def _linear_jvp(primals, tangents, *, counts, pull):
    out = _linear_p.bind(*primals, counts=counts, pull=pull)
    linear = sum(counts)
    if all(type(t) is ad.Zero for t in tangents[counts[0] : linear]):
        return out, list(tangents[: counts[0]])
    tangents = map(ad.instantiate_zeros, tangents[:linear])
    return out, _linear_p.bind(*tangents, *primals[linear:], counts=counts, pull=pull)


ad.primitive_jvps[_linear_p] = _linear_jvp


def _linear_transpose(gradients, *args, counts, pull):
    values, linear = counts[0], sum(counts)
    gradients = list(map(ad.instantiate_zeros, gradients))
    found = pull(args[linear:], gradients, jnp.uint32(0))
    every = [*gradients, *found]
    needed = map(ad.is_undefined_primal, args[:linear])
    every = [g if need else None for g, need in zip(every, needed, strict=True)]
    assert len(every) == values + counts[1]
    return every + [None] * (len(args) - linear)


ad.primitive_transposes[_linear_p] = _linear_transpose


def _linear_batch(args, axes, *, counts, pull):
    values, linear = counts[0], sum(counts)
    (length,) = {a.shape[axis] for a, axis in zip(args, axes, strict=True) if axis is not None}
    # Each example has its gradient at the values; but the token of all is one.
    moved = [
        jnp.broadcast_to(a, (length, *a.shape)) if axis is None else jnp.moveaxis(a, axis, 0)
        for a, axis in zip(args[: values - 1], axes[: values - 1], strict=True)
    ]
    of_values, of_extra, of_residuals = (
        [*[0] * (values - 1), axes[values - 1]],
        axes[values:linear],
        axes[linear:],
    )

    def each(residuals, gradients, position):
        positions = position * jnp.uint32(_FAR_APART) + jnp.arange(length, dtype=jnp.uint32)
        mapped = (list(of_residuals), of_values, 0)
        found = jax.vmap(pull, mapped)(list(residuals), list(gradients), positions)
        return [
            jnp.sum(g, 0) if axis is None else jnp.moveaxis(g, 0, axis)
            for g, axis in zip(found, of_extra, strict=True)
        ]

    out = _linear_p.bind(*moved, *args[values - 1 :], counts=counts, pull=each)
    return out, of_values


batching.primitive_batchers[_linear_p] = _linear_batch
