"""THE custom_vjp: `linear_operation`, which every layer goes through, and `tell_gate`."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding

from jaxnorm import checks
from jaxnorm.activations import DEFERRED, Gate, closed_form, gate_slope, resolve_gate
from jaxnorm.compat import varying_axes
from jaxnorm.coordinates import pull_back, standardized
from jaxnorm.operations.linear import LinearOperation
from jaxnorm.rule import WARM_UP, Rule
from jaxnorm.statistics import tracked
from jaxnorm.statistics.moments import AxisName, centered_gradient, input_moments
from jaxnorm.statistics.step_scale import divisor
from jaxnorm.statistics.tracked import Statistics
from jaxnorm.statistics.weighting import needs_slope

#: A layer's statistics, or a function that is told how to make them and may return None.
_Given = Callable[..., Statistics | None] | Statistics | None


def linear_operation(
    operation: LinearOperation,
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    *,
    gate: Gate,
    rule: Rule,
    axis_name: AxisName | None,
    statistics: Any = None,
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
    if form in ("plain", "plain_with_statistics"):
        z = operation.forward(x, kernel, bias)
        if form == "plain_with_statistics":
            return _recorded(operation, gate, rule, statistics, x, kernel, bias, z)
        return (z, _handle(z)) if gate is DEFERRED else z
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    rule = jax.tree.map(lambda knob: lax.stop_gradient(jnp.asarray(knob, dtype)), rule)
    x, kernel, bias = _varying_alike(x, kernel, bias)
    slope_function, constants = _slope_function(operation, gate, x, kernel, bias, rule)
    out: Any = _neuronwise(operation, slope_function, axis_name, x, kernel, bias, rule, constants)
    return out if gate is DEFERRED else out[0]


def _varying_alike(*arrays: Any) -> Any:
    """Let all arrays vary over the same manual mesh axes (`jax.shard_map` with check_vma).

    Then each gradient has its array's type, and JAX sums those of replicated arrays over the axes.
    """
    axes = frozenset().union(*(varying_axes(a) for a in arrays if a is not None))

    def varying(a):
        missing = tuple(axes - varying_axes(a))
        return lax.pcast(a, missing, to="varying") if missing else a

    return tuple(a if a is None else varying(a) for a in arrays)


def _handle(z):
    """Zeros whose gradient is the slope that somebody tells (see `tell_gate`)."""
    return jnp.zeros_like(z, dtype=jnp.promote_types(z.dtype, jnp.float32))


def _slope_function(operation, gate, x, kernel, bias, rule):
    """(f, constants) with f(z, *constants) the slope; the constants are what the gate closes over.

    A learnable slope, say: `jax.custom_vjp` must see every traced value among its arguments. No f
    for an deferred gate, whose slope comes back as the gradient of a handle.
    """
    if gate is DEFERRED:
        return None, ()
    if not needs_slope(rule.weighting):
        return (lambda z: None), ()

    def rows():
        return _rows(operation, operation.forward(x, kernel, bias), rule)

    slope = functools.partial(gate_slope, gate)
    phi = resolve_gate(gate)
    if phi is None or closed_form(phi) is not None:
        return slope, ()
    slope, constants = jax.closure_convert(slope, jax.eval_shape(rows))
    return slope, tuple(lax.stop_gradient(constant) for constant in constants)


def _rows(operation, z, rule):
    """The rows of z whose slope is kept: those that the statistics use.

    All of them on a mesh with Explicit axes, where a part of a sharded axis can be an error.
    """
    return z if _sharding(z).mesh.explicit_axes else operation.rows_of_z(z, rule.statistics_rows)


def _in_auto_axes(f, like, *args) -> Any:
    """f(*args), with the shardings inside of f left to the compiler; f's results are those `like`.

    The statistics add, cut, repeat and reshape along every axis: on a mesh with Explicit axes each
    of that would ask for a sharding.
    """
    meshes = [_sharding(a).mesh for a in jax.tree.leaves(args)]
    mesh = next((mesh for mesh in meshes if mesh.explicit_axes), None)
    if mesh is None:
        return f(*args)
    # An array that came from outside of the mesh has an empty mesh of its own.
    types = jax.tree.map(lambda a: NamedSharding(mesh, _sharding(a).spec), like)
    return jax.sharding.auto_axes(f, axes=mesh.explicit_axes, out_sharding=types)(*args)


def _sharding(array):
    return jax.typeof(array).sharding


def _recorded(operation, gate, rule, statistics: _Given, x, kernel, bias, z):
    """Z with its true gradient, while the gradient at the statistics is those of this batch."""
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    rule = jax.tree.map(lambda knob: lax.stop_gradient(jnp.asarray(knob, dtype)), rule)
    centered = bias is not None

    def empty():
        gated = gate is DEFERRED or resolve_gate(gate) is not None
        return tracked.empty(operation, x, kernel, z, rule, gated=gated, centered=centered)

    if callable(statistics):
        statistics = statistics(empty)
    if statistics is None:
        return (z, _handle(z)) if gate is DEFERRED else z
    checks.check_statistics(statistics, jax.eval_shape(empty))
    slope_function, constants = _slope_function(operation, gate, x, kernel, bias, rule)
    names, values = zip(*sorted(statistics.items()), strict=True)
    z, x, kernel, *values = _varying_alike(z, *map(lax.stop_gradient, (x, kernel)), *values)
    statistics = dict(zip(names, values, strict=True))
    operands = (z, x, kernel, statistics, rule, constants)
    out: Any = _record(operation, slope_function, centered, *operands)
    return out if gate is DEFERRED else out[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _record(operation, slope_function, centered, z, x, kernel, statistics, rule, constants):
    return z, _handle(z) if slope_function is None else None


def _record_forward(operation, slope_function, centered, z, x, kernel, statistics, rule, constants):
    residuals = (x, kernel, statistics, rule, constants)
    if slope_function is None:
        return (z, _handle(z)), (None, *residuals)
    slope = slope_function(_rows(operation, z, rule), *constants)
    return (z, None), (slope, *residuals)


def _record_backward(operation, slope_function, centered, residuals, gradients):
    slope, x, kernel, statistics, rule, constants = residuals
    g_z, g_handle = gradients
    if slope_function is None and needs_slope(rule.weighting):
        slope = _rows(operation, g_handle, rule)

    def taken(x, kernel, g_z, slope, statistics, rule):
        batch = functools.partial(_batch_statistics, operation.unplaced(), centered=centered)
        operands = (x, kernel, g_z, slope, statistics, rule)
        if rule.statistics_every == 1:
            return batch(*operands)
        steps = statistics["steps"]
        now = (steps < WARM_UP) | (steps % rule.statistics_every == 0)
        nothing = jax.tree.map(jnp.zeros_like, statistics)
        return lax.cond(now, batch, lambda *_: nothing, *operands)

    sums = _in_auto_axes(taken, statistics, x, kernel, g_z, slope, statistics, rule)
    zeros = (jnp.zeros_like(a) for a in (x, kernel))
    return g_z, *zeros, sums, *jax.tree.map(jnp.zeros_like, (rule, constants))


_record.defvjp(_record_forward, _record_backward)


def _batch_statistics(operation, x, kernel, g_z, slope, statistics, rule, *, centered):
    """The batch's, on the axes and in the types of those before."""
    if slope is not None:
        slope = operation.rows_of_z(slope, rule.statistics_rows)
        _, _, slope = operation.flat(None, None, slope)
    x, kernel, g_z = operation.flat(x, kernel, g_z)
    rows = operation.first_rows(g_z, rule.statistics_rows)
    batch = tracked.batch_statistics(
        operation, x, kernel, slope, rows, rule, tracked.center_of(statistics), centered=centered
    )
    return {name: batch[name].astype(value.dtype) for name, value in statistics.items()}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _neuronwise(operation, slope_function, axis_name, x, kernel, bias, rule, constants):
    z = operation.forward(x, kernel, bias)
    return z, _handle(z) if slope_function is None else None


def _forward(operation, slope_function, axis_name, x, kernel, bias, rule, constants):
    z = operation.forward(x, kernel, bias)
    if slope_function is None:
        return (z, _handle(z)), (x, kernel, bias, None, rule, constants)
    slope = slope_function(_rows(operation, z, rule), *constants)
    return (z, None), (x, kernel, bias, slope, rule, constants)


def _backward(operation, slope_function, axis_name, residuals, gradients):
    x, kernel, bias, slope, rule, constants = residuals
    g_z, g_handle = gradients
    if slope_function is None and needs_slope(rule.weighting):
        slope = _rows(operation, g_handle, rule)
    z, pull = jax.vjp(lambda x: operation.forward(x, kernel, bias), x)
    (g_x,) = pull(g_z.astype(z.dtype))

    def adapted(x, kernel, g_z, slope, rule):
        inside, centered = operation.unplaced(), bias is not None
        g_kernel, g_bias = _parameter_gradients(
            inside, x, kernel, g_z, slope, rule, centered=centered, axis_name=axis_name
        )
        # JAX takes a cotangent of the wrong dtype without a word and fails only under scan.
        g_kernel = g_kernel.astype(kernel.dtype)
        return g_kernel, None if g_bias is None else g_bias.astype(bias.dtype)

    g_kernel, g_bias = _in_auto_axes(adapted, (kernel, bias), x, kernel, g_z, slope, rule)
    return g_x, g_kernel, g_bias, *jax.tree.map(jnp.zeros_like, (rule, constants))


_neuronwise.defvjp(_forward, _backward)


def _parameter_gradients(operation, x, kernel, g_z, slope, rule, *, centered, axis_name):
    """(g_W, g_b) in the form that `rule.gradient` asks for; g_b is None unless centered."""
    if slope is not None:
        # Already cut to these rows, or on a mesh with Explicit axes still whole.
        slope = operation.rows_of_z(slope, rule.statistics_rows)
        _, _, slope = operation.flat(None, None, slope)
    x, kernel, g_z = operation.flat(x, kernel, g_z)
    rows = operation.first_rows(g_z, rule.statistics_rows)
    devices = 1 if axis_name is None else lax.psum(1, axis_name)
    checks.check_samples(operation.samples(rows) * devices, centered)
    moments = input_moments(
        operation,
        x,
        kernel,
        slope,
        rows,
        rule,
        rule.knobs,
        centered=centered,
        axis_name=axis_name,
    )
    if centered:
        g_b = operation.bias_grad(g_z.astype(moments.sigma.dtype))
        g_w = centered_gradient(operation, x, kernel, g_z, g_b, moments)
    else:
        g_b, g_w = None, operation.kernel_grad(x, kernel, g_z)
    if operation.mask is not None:
        g_w = jnp.where(jnp.asarray(operation.mask) == 0, 0, g_w)
    g_w = standardized(g_w, moments)
    g_w, g_b = (g_w, g_b) if rule.gradient == "standardized" else pull_back(g_w, g_b, moments)
    if rule.step_scale != "none":
        by = _divisor(operation, x, kernel, rows, rule, axis_name)
        g_w, g_b = jax.tree.map(lambda g: g / by, (g_w, g_b))
    return operation.restored(g_w, g_b)


def _divisor(operation, x, kernel, rows, rule, axis_name):
    """`step_scale.divisor` on the rows that the statistics use; its root for half of the way."""

    def total(values):
        return values if axis_name is None else lax.psum(values, axis_name)

    x = operation.first_rows(x, rule.statistics_rows)
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    by = divisor(rule.step_scale, operation, x, kernel, rows, rule.damping, rule.epsilon, total)
    return jnp.sqrt(by) if rule.gradient == "standardized" else by


@jax.custom_vjp
def _tell_gate(u, handle, slope):
    del handle, slope
    return u


def _tell_gate_forward(u, handle, slope):
    del handle
    return u, slope


def _tell_gate_backward(slope, g_u):
    dtype = jnp.promote_types(g_u.dtype, jnp.float32)
    zero = np.zeros(slope.shape, jax.dtypes.float0) if slope.dtype == bool else slope * 0
    return g_u, slope.astype(dtype), zero


_tell_gate.defvjp(_tell_gate_forward, _tell_gate_backward)


def tell_gate(
    u: jax.Array, handle: jax.Array, gate: Gate = None, *, slope: Any = None
) -> jax.Array:
    """Tell a layer with ``gate=DEFERRED`` what its activation finally sees.

    Forward (exact):      u itself
    Backward:             u's gradient is handed on; the layer that the handle came from takes
                          phi'(u), or `slope`, as the derivative of its activation

    For a layer whose output goes through a normalization or a sum before the activation, or into a
    product of two layers (gated units). A handle that is deferred twice has the sum of both slopes;
    one that is never deferred leaves its layer with its own, uniformly weighted moments.

    Args:
        u: what the activation is applied to: the result must be used in its place.
        handle: the second output of the layer, z's shape.
        gate: the activation, as everywhere; None with `slope`.
        slope: the derivative itself, z's shape, any real or boolean dtype. No gradient flows to it.

    Returns:
        u.

    Raises:
        ValueError: if the slope has not the handle's shape, or both or neither of gate and slope
            are given.

    Transformations: jit, grad, vmap, scan, remat, shard_map; both calls in the same body.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxnorm import DEFERRED, neuronwise_dense, tell_gate
        >>> def block(x, kernel, bias):
        ...     z, handle = neuronwise_dense(x, kernel, bias, gate=DEFERRED)
        ...     u = (z - z.mean(0, keepdims=True)) / z.std(0, keepdims=True)
        ...     return jax.nn.relu(tell_gate(u, handle, "relu"))
        >>> def swiglu(x, kernel, gate_kernel):
        ...     (a, a_handle), (b, b_handle) = (
        ...         neuronwise_dense(x, k, gate=DEFERRED) for k in (kernel, gate_kernel))
        ...     a = tell_gate(a, a_handle, slope=jax.nn.silu(b))  # d(a silu(b)) / da
        ...     b = tell_gate(b, b_handle, slope=a * jax.grad(lambda b: jax.nn.silu(b).sum())(b))
        ...     return a * jax.nn.silu(b)
        >>> block(jnp.eye(4), jnp.ones((4, 3)), jnp.zeros(3)).shape
        (4, 3)

    References:
        None: the sample weight of the thesis topic, taken where the activation is.
    """
    checks.check_told(gate, slope)
    if slope is None:
        slope = gate_slope(gate, lax.stop_gradient(u))
    checks.check_slope(jnp.shape(slope), jnp.shape(handle))
    return _tell_gate(u, handle, lax.stop_gradient(jnp.asarray(slope)))
