"""Convolutions whose operands lie as XLA's fast ones do."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core


def canonically(f: Callable[..., Any], *args: Any) -> Any:
    """f(*args), an array, with every convolution in it of operands in the order NHWC and HWIO.

    XLA brings the gradient of a kernel into this order by itself, but on a CPU not inside of a
    branch or a loop, where it then takes forty times as long.
    """
    program = jax.make_jaxpr(f)(*args)
    if any(_has_function(equation) for equation in program.eqns):
        return f(*args)  # not worth it: a function inside, of the kernel turned around
    known = dict(zip(program.jaxpr.invars, args, strict=True))
    known |= dict(zip(program.jaxpr.constvars, program.consts, strict=True))

    def of(var: Any) -> Any:
        return var.val if isinstance(var, core.Literal) else known[var]

    for equation in program.jaxpr.eqns:
        operands = map(of, equation.invars)
        if equation.primitive is lax.conv_general_dilated_p:
            known[equation.outvars[0]] = _convolution(*operands, **equation.params)
            continue
        found = equation.primitive.bind(*operands, **equation.params)
        results = found if equation.primitive.multiple_results else [found]
        known.update(zip(equation.outvars, results, strict=True))
    (out,) = map(of, program.jaxpr.outvars)
    return out


def _convolution(x: jax.Array, kernel: jax.Array, *, dimension_numbers: Any, **params: Any) -> Any:
    """`lax.conv_general_dilated`, its operands and its result transposed."""
    (batch, feature, *space), (out, into, *taps), result = dimension_numbers
    last = len(space) + 1
    x = jnp.transpose(x, (batch, *space, feature))
    kernel = jnp.transpose(kernel, (*taps, into, out))
    axes = (0, last, *range(1, last))
    numbers = lax.ConvDimensionNumbers(axes, (last, last - 1, *range(last - 1)), axes)
    z = lax.conv_general_dilated_p.bind(x, kernel, dimension_numbers=numbers, **params)
    order = dict(zip(result, axes, strict=True))
    return jnp.transpose(z, [order[axis] for axis in range(len(order))])


def _has_function(equation: Any) -> bool:
    return any(
        isinstance(value, core.Jaxpr | core.ClosedJaxpr) for value in equation.params.values()
    )
