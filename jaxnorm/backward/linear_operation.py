"""THE custom_vjp: `linear_operation`, which every layer goes through."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm import checks
from jaxnorm.activations import DEFERRED, Gate, closed_form, gate_slope, resolve_gate
from jaxnorm.backward.adapted import parameter_gradients
from jaxnorm.backward.deferred import handle_of
from jaxnorm.backward.recorded import batch_statistics, when_due
from jaxnorm.backward.sharding import has_explicit_axes, in_auto_axes, varying_alike
from jaxnorm.operations.linear import LinearOperation
from jaxnorm.precision import at_least_float32
from jaxnorm.rule import Rule
from jaxnorm.statistics import tracked
from jaxnorm.statistics.batch import AxisName, make_batch
from jaxnorm.statistics.tracked import Statistics
from jaxnorm.statistics.weighting import needs_slope

#: A layer's statistics, or a function that is told how to make them and may return None.
Given = Callable[..., Statistics | None] | Statistics | None


def linear_operation(
    operation: LinearOperation,
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    *,
    gate: Gate,
    rule: Rule,
    axis_name: AxisName | None,
    statistics: Given = None,
) -> Any:
    """`neuronwise_dense` for any operation that is linear in its kernel; one dtype throughout.

    `statistics` are those of the layer, or a function that is told how to make them: of a layer
    that may have none.
    """
    checks.check_rule(rule)
    resolve_gate(gate)
    if bias is not None:
        checks.check_bias(bias.shape, operation.bias_shape(kernel))
    form = rule.gradient or ("preconditioned" if statistics is None else "plain_with_statistics")
    if form not in ("preconditioned", "standardized"):
        # Outside of the custom_vjp, so that all of its derivatives are JAX's.
        z = operation.forward(x, kernel, bias)
        if form == "plain_with_statistics":
            statistics = _resolved(statistics, operation, gate, rule, x, kernel, bias, z)
        if form == "plain" or statistics is None:
            return (z, handle_of(z)) if gate is DEFERRED else z
        return record(
            operation, z, x, kernel, bias, gate=gate, rule=rule, statistics=statistics
        )
    return _with_rule(operation, None, x, (kernel, bias), None, gate, rule, axis_name)


def record(
    operation: LinearOperation,
    z: jax.Array,
    x: jax.Array,
    kernel: jax.Array,
    bias: Any,
    *,
    gate: Gate,
    rule: Rule,
    statistics: Statistics,
) -> Any:
    """z itself, with the statistics of this call as their gradient; (z, handle) if deferred.

    Args:
        operation: what z is made by.
        z: the layer's output, which it may be without its bias.
        x: what the kernel is multiplied by.
        kernel: only its type matters, and
        bias: whether there is any.
        gate: as in `neuronwise_dense`.
        rule: see `Rule`.
        statistics: those before.
    """
    # Statistics are sums, which whoever sums the gradients over devices sums too: no axis_name.
    x, parameters = lax.stop_gradient((x, (kernel, bias)))
    return _with_rule(operation, z, x, parameters, statistics, gate, rule, None)


def _with_rule(operation, z, x, parameters, statistics, gate, rule, axis_name):
    """`_changed`, whose arguments it prepares."""
    dtype = at_least_float32(x.dtype)
    rule = jax.tree.map(lambda knob: lax.stop_gradient(jnp.asarray(knob, dtype)), rule)
    arrays = varying_alike((z, x, parameters, statistics))
    slope_function, constants = _slope_function(operation, gate, rule, *arrays[:3])
    out: Any = _changed(operation, slope_function, axis_name, *arrays, rule, constants)
    return out if gate is DEFERRED else out[0]


def _resolved(given: Given, operation, gate, rule, x, kernel, bias, z) -> Statistics | None:
    """The statistics, which must be those of such a layer."""

    def empty():
        gated, centered = gate is DEFERRED or resolve_gate(gate) is not None, bias is not None
        return tracked.empty(operation, x, kernel, z, rule, gated=gated, centered=centered)

    statistics = given(empty) if callable(given) else given
    if statistics is not None:
        checks.check_statistics(statistics, jax.eval_shape(empty))
    return statistics


def _slope_function(operation, gate, rule, z, x, parameters):
    """(f, constants) with f(z, *constants) the slope; the constants are what the gate closes over.

    A learnable slope, say: `jax.custom_vjp` must see every traced value among its arguments. No f
    for a deferred gate, whose slope comes back as the gradient of a handle.
    """
    if gate is DEFERRED:
        return None, ()
    if not needs_slope(rule.weighting):
        return (lambda z: None), ()
    slope = functools.partial(gate_slope, gate)
    phi = resolve_gate(gate)
    if phi is None or closed_form(phi) is not None:
        return slope, ()
    rows = jax.eval_shape(lambda: _rows(operation, _output(operation, z, x, parameters), rule))
    slope, constants = jax.closure_convert(slope, rows)
    return slope, tuple(lax.stop_gradient(constant) for constant in constants)


def _rows(operation, z, rule):
    """The rows of z whose slope is kept: those that the statistics use."""
    return z if has_explicit_axes(z) else operation.rows_of_z(z, rule.statistics_rows)


def _output(operation, z, x, parameters):
    return operation.forward(x, *parameters) if z is None else z


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _changed(operation, slope_function, axis_name, z, x, parameters, statistics, rule, constants):
    """(z, handle), with one of two changes in the backward pass.

    Without z and statistics: z is computed here, and its parameters get the adapted gradient. With
    them: z is handed on, and so is its gradient, while the statistics get those of the batch.
    """
    z = _output(operation, z, x, parameters)
    return z, handle_of(z) if slope_function is None else None


def _forward(operation, slope_function, axis_name, z, x, parameters, statistics, rule, constants):
    z = _output(operation, z, x, parameters)
    residuals = (x, parameters, statistics, rule, constants)
    if slope_function is None:
        return (z, handle_of(z)), (None, *residuals)
    return (z, None), (slope_function(_rows(operation, z, rule), *constants), *residuals)


def _backward(operation, slope_function, axis_name, residuals, gradients):
    slope, x, parameters, statistics, rule, constants = residuals
    g_z, g_handle = gradients
    if slope_function is None and needs_slope(rule.weighting):
        slope = _rows(operation, g_handle, rule)

    def taken(statistics, x, parameters, g_z, slope, rule):
        kernel, bias = parameters
        batch = make_batch(
            operation, x, kernel, g_z, slope, rule, centered=bias is not None, axis_name=axis_name
        )
        if statistics is not None:
            return batch_statistics(batch, statistics)
        # JAX takes a cotangent of the wrong dtype without a word and fails only under scan.
        return jax.tree.map(lambda g, p: g.astype(p.dtype), parameter_gradients(batch), parameters)

    operands = (statistics, x, parameters, g_z, slope, rule)
    others = jax.tree.map(jnp.zeros_like, (rule, constants))
    if statistics is None:
        z, pull = jax.vjp(lambda x: operation.forward(x, *parameters), x)
        (g_x,) = pull(g_z.astype(z.dtype))
        return None, g_x, in_auto_axes(taken, parameters, *operands), None, *others
    now_and_then = functools.partial(when_due, rule.statistics_every, taken)
    statistics = in_auto_axes(now_and_then, statistics, *operands)
    return g_z, *jax.tree.map(jnp.zeros_like, (x, parameters)), statistics, *others


_changed.defvjp(_forward, _backward)
