"""THE change of a gradient: `linear_operation`, which every layer goes through."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm import checks, masks
from jaxnorm.activations import DEFERRED, Gate, closed_form, gate_slope, resolve_gate
from jaxnorm.backward.adapted import parameter_gradients
from jaxnorm.backward.beside import handed_on
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
    neuron_mask: Any = None,
    batch_shape: tuple[int, ...] | None = None,
) -> Any:
    """`neuronwise_dense` for any operation that is linear in its kernel; one dtype throughout.

    `statistics` are those of the layer, or a function that is told how to make them: of a layer
    that may have none. `batch_shape` are the axes of the samples before those of positions, where x
    has them as one.
    """
    checks.check_rule(rule)
    resolve_gate(gate)
    if bias is not None:
        checks.check_bias(bias.shape, operation.bias_shape(kernel))
    form = rule.gradient or ("preconditioned" if statistics is None else "plain_with_statistics")
    if form not in ("preconditioned", "standardized"):
        # Outside of what follows, so that all of its derivatives are JAX's.
        z = operation.forward(x, kernel, bias)
        found = None
        if form == "plain_with_statistics":
            found = _resolved(statistics, operation, gate, rule, x, kernel, bias, z)
        if found is None:
            return (z, handle_of(z)) if gate is DEFERRED else z
        return record(
            operation,
            z,
            x,
            kernel,
            bias,
            gate=gate,
            rule=rule,
            statistics=found,
            neuron_mask=neuron_mask,
            batch_shape=batch_shape,
        )
    rule = _constant(rule, x.dtype)
    z = jax.eval_shape(operation.forward, x, kernel, bias)
    mask = _mask(neuron_mask, operation, z, batch_shape, x.dtype)
    x, parameters, mask = varying_alike((x, (kernel, bias), mask))
    slope_function, constants = _slope_function(operation, gate, rule, None, x, parameters, mask)
    arrays = (x, parameters, rule, constants, mask)
    out: Any = _adapted(operation, slope_function, axis_name, *arrays)
    return out if gate is DEFERRED else out[0]


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
    neuron_mask: Any = None,
    batch_shape: tuple[int, ...] | None = None,
) -> Any:
    """Z itself, with the statistics of this call as their gradient; (z, handle) if deferred.

    Args:
        operation: what z is made by.
        z: the layer's output, which it may be without its bias.
        x: what the kernel is multiplied by.
        kernel: only its type matters, and
        bias: whether there is any.
        gate: as in `neuronwise_dense`.
        rule: see `Rule`.
        statistics: those before.
        neuron_mask: as in `neuronwise_dense`.
        batch_shape: as in `linear_operation`.
    """
    x, parameters = lax.stop_gradient((x, (kernel, bias)))
    rule = _constant(rule, x.dtype)
    mask = _mask(neuron_mask, operation, z, batch_shape, x.dtype)
    z, x, parameters, statistics, mask = varying_alike((z, x, parameters, statistics, mask))
    slope_function, constants = _slope_function(operation, gate, rule, z, x, parameters, mask)
    # Statistics are sums, which whoever sums the gradients over devices sums too: no axis_name.
    out: Any = handed_on(
        functools.partial(_residuals, operation, slope_function),
        functools.partial(_recorded_alike if operation.direct else _recorded, operation),
        (z, handle_of(z)) if gate is DEFERRED else (z,),
        statistics,
        (x, parameters, rule, constants, mask),
    )
    return out if gate is DEFERRED else out[0]


def _constant(rule: Rule, dtype: Any) -> Rule:
    """The rule with its knobs as arrays, to which no gradient flows."""
    dtype = at_least_float32(dtype)
    return jax.tree.map(lambda knob: lax.stop_gradient(jnp.asarray(knob, dtype)), rule)


def _mask(given: Any, operation: Any, z: Any, batch_shape: Any, dtype: Any) -> Any:
    """How often each sample of z counts, or None: as often as any other."""
    mask = masks.current_mask() if given is None else given
    if mask is None:
        return None
    samples, dtype = operation.sample_shape(z), at_least_float32(dtype)
    return _fitted(lax.stop_gradient(mask), samples, batch_shape, dtype)


def _fitted(mask, samples, batch_shape, dtype):
    """How often each sample counts, with the axes of z's samples."""
    if batch_shape is None:
        return masks.fitted(mask, samples, dtype)
    return masks.fitted(mask, (*batch_shape, *samples[1:]), dtype).reshape(samples)


def _resolved(given: Given, operation, gate, rule, x, kernel, bias, z) -> Statistics | None:
    """The statistics, which must be those of such a layer."""
    gated, centered = gate is DEFERRED or resolve_gate(gate) is not None, bias is not None

    def empty():
        return tracked.empty(operation, x, kernel, z, rule, gated=gated, centered=centered)

    statistics = given(empty) if callable(given) else given
    if statistics is not None:
        shapes = tuple(jax.ShapeDtypeStruct(jnp.shape(a), a.dtype) for a in (x, kernel, z))
        known = operation.direct and all(isinstance(knob, float) for knob in jax.tree.leaves(rule))
        types = _types if known else _types.__wrapped__
        checks.check_statistics(statistics, types(operation, *shapes, rule, gated, centered))
    return statistics


@functools.lru_cache
def _types(operation, x, kernel, z, rule, gated, centered):
    """What the statistics of such a layer are."""
    empty = functools.partial(tracked.empty, operation, x, kernel, z, rule)
    return jax.eval_shape(functools.partial(empty, gated=gated, centered=centered))


def _slope_function(operation, gate, rule, z, x, parameters, mask):
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
    rows = jax.eval_shape(
        lambda: _rows(operation, _output(operation, z, x, parameters), rule, mask)
    )
    slope, constants = jax.closure_convert(slope, rows)
    return slope, tuple(lax.stop_gradient(constant) for constant in constants)


def _rows(operation, z, rule, mask):
    """The rows of z whose slope is kept: those that the statistics use, if that is known yet."""
    if mask is not None or has_explicit_axes(z):
        return z
    return operation.spaced_rows_of_z(z, rule.statistics_rows)


def _output(operation, z, x, parameters):
    return operation.forward(x, *parameters) if z is None else z


def _batch(operation, residuals, g_z, g_handle=None, axis_name=None):
    """The batch, on which nothing but its gradient was missing."""
    slope, x, (kernel, bias), rule, mask = residuals
    if g_handle is not None and needs_slope(rule.weighting):
        slope = _rows(operation, g_handle, rule, mask)
    centered = bias is not None
    settings = {"centered": centered, "axis_name": axis_name, "mask": mask}
    return make_batch(operation, x, kernel, g_z, slope, rule, **settings)


def _residuals(operation, slope_function, out, statistics, inputs):
    """What the statistics of a batch are made of, but for its gradient."""
    x, parameters, rule, constants, mask = inputs
    slope = None
    if slope_function is not None:
        slope = slope_function(_rows(operation, out[0], rule, mask), *constants)
    return statistics, (slope, x, parameters, rule, mask)


def _recorded(operation, residuals, gradients, position):
    """The statistics of the batch."""
    if operation.spatial_axes and residuals[0].interval > 1:
        operation = dataclasses.replace(operation, branched=True)

    def taken(statistics, residuals, gradients, position):
        return batch_statistics(_batch(operation, residuals, *gradients), statistics, position)

    now_and_then = functools.partial(when_due, taken)
    return in_auto_axes(now_and_then, residuals[0], *residuals, gradients, position)


#: Layers of the same shapes are traced and lowered once, where the operation is one object.
_recorded_alike = jax.jit(_recorded, static_argnums=0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _adapted(operation, slope_function, axis_name, x, parameters, rule, constants, mask):
    """(z, handle); in the backward pass the parameters get the adapted gradient."""
    z = operation.forward(x, *parameters)
    return z, handle_of(z) if slope_function is None else None


def _forward(operation, slope_function, axis_name, x, parameters, rule, constants, mask):
    z = operation.forward(x, *parameters)
    if slope_function is None:
        return (z, handle_of(z)), (None, x, parameters, rule, mask, constants)
    slope = slope_function(_rows(operation, z, rule, mask), *constants)
    return (z, None), (slope, x, parameters, rule, mask, constants)


def _backward(operation, slope_function, axis_name, residuals, gradients):
    *residuals, constants = residuals
    g_z, g_handle = gradients
    _, x, parameters, rule, mask = residuals

    def taken(residuals, g_z, g_handle):
        found = parameter_gradients(_batch(operation, residuals, g_z, g_handle, axis_name))
        # JAX takes a cotangent of the wrong dtype without a word and fails only under scan.
        return jax.tree.map(lambda g, p: g.astype(p.dtype), found, residuals[2])

    z, pull = jax.vjp(lambda x: operation.forward(x, *parameters), x)
    (g_x,) = pull(g_z.astype(z.dtype))
    adapted = in_auto_axes(taken, parameters, tuple(residuals), g_z, g_handle)
    return g_x, adapted, *jax.tree.map(jnp.zeros_like, (rule, constants, mask))


_adapted.defvjp(_forward, _backward)
