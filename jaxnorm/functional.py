"""The rule as functions: THE custom_vjp, for any operation that is linear in its kernel."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm import checks
from jaxnorm.coordinates import covariant, pull_back
from jaxnorm.gates import Gate, closed_form, gate_slope, resolve_gate
from jaxnorm.operations import LinearOperation, dense
from jaxnorm.rule import Rule
from jaxnorm.statistics import AxisName, centred_gradient, input_moments
from jaxnorm.weighting import needs_slope


def neuronwise_dense(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    *,
    gate: Gate,
    rule: Rule = Rule(),
    axis_name: AxisName | None = None,
) -> jax.Array:
    """A dense layer whose weight gradient is taken in standardised coordinates, per neuron.

    Forward (exact):      z[..., o] = sum_i x[..., i] kernel[i, o] + bias[o]
    Backward (modified):  g_x = g_z W^T                                  (the true one)
                          g_W <- (g_W - mean g_b) / sigma^2              (not the VJP)
                          g_b <- g_b - sum_i mean[i, :] g_W[i, :]        (with the new g_W)

    where mean and sigma [I, O] are the moments of each neuron's inputs over the samples on which it
    is active, weighted by the activation's derivative (see `Rule`, which also selects the other
    members of the family). Without a bias nothing can absorb a mean: then mean = 0 and sigma^2 is
    the second moment about zero. Nothing is remembered between calls.

    Args:
        x: [..., I], float16, bfloat16, float32 or float64; all leading axes are samples (N).
        kernel: [I, O].
        bias: [O] or None.
        gate: the activation that follows: a name of `jax.nn`, an elementwise callable, or None if
            none follows. It is differentiated, not applied, and has no default, because a guess
            would silently be another method. With None the moments are the layer's own.
        rule: which moments and which form of the gradient. With ``gradient="plain"`` this is the
            plain layer, gradient and all, bit for bit.
        axis_name: name or names of mapped axes (`jax.shard_map`, `jax.vmap`) over which the batch
            is spread; the statistics are then those of the whole batch. The gradient must be taken
            inside the mapped function. Under `jax.jit` on a sharded batch it is not needed.

    Returns:
        z [..., O], in the common dtype of the arguments.

    Raises:
        TypeError: for an x, kernel or bias that is not floating-point, a gate or rule of another
            type.
        ValueError: for shapes that do not fit or an unknown gate; and, where the gradient is taken,
            for an empty batch or a single sample (its own mean: the weights would never learn).

    Numerics: statistics and the adapted gradient in at least float32, about a shift, so large
    means do not cancel (in float32 sigma^2 does lose digits for a neuron whose active samples lie
    hundreds of their standard deviations from the layer's mean). g_x, g_W, g_b have the dtype of
    x, kernel, bias; g_W scales with 1 / x^2, so mind the range of float16. A neuron that is never
    active has the layer's moments; one whose moments are not finite (NaN or Inf in the batch, or
    |x| beyond about 1e18 in float32) has the plain gradient.

    Cost: at most two kernel-gradient products more, over `statistics_rows`; none in the forward
    pass, which keeps phi'(z) of these rows (a mask for ReLU, at least float32 otherwise).

    Transformations: jit, grad, scan and remat. Under vmap each mapped example has its own
    statistics, over its own leading axes, unless `axis_name` names the mapped axis. Gradients
    summed over micro-batches are those of micro-batch statistics. On a mesh with Explicit axes
    `statistics_rows` must be a multiple of the number of shards of the batch. Forward mode (jvp,
    jacfwd, hessian) raises JAX's TypeError for custom_vjp; use ``gradient="plain"`` there. Second
    derivatives (grad of grad) are those of the adapted gradient.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxnorm import Rule, neuronwise_dense
        >>> x = jnp.array([[10.0], [12.0], [11.0], [-5.0]])
        >>> def loss(kernel, bias, rule):
        ...     z = neuronwise_dense(x, kernel, bias, gate="relu", rule=rule)
        ...     return jnp.sum(jax.nn.relu(z) * jnp.array([[1.0], [-1.0], [1.0], [1.0]]))
        >>> kernel, bias = jnp.ones((1, 1)), jnp.zeros(1)
        >>> float(jax.grad(loss)(kernel, bias, Rule(gradient="plain"))[0, 0])
        9.0
        >>> exact = Rule(shrinkage=0.0, damping=0.0)
        >>> round(float(jax.grad(loss)(kernel, bias, exact)[0, 0]), 4)  # (9 - 11 * 1) / (2 / 3)
        -3.0

    References:
        The thesis topic "Can We Improve BatchNorm? Neuron-wise Input Normalization for Neural
        Networks" (TU Munich); Lange, Helfrich, Ye, JMLR 23(72), 2022, arXiv 2108.01110 (uniform
        weights); Ollivier, arXiv 1303.0818 (error weights).
    """
    x, kernel = jnp.asarray(x), jnp.asarray(kernel)
    bias = None if bias is None else jnp.asarray(bias)
    checks.check_floating("x", x)
    checks.check_floating("kernel", kernel)
    checks.check_matrix("kernel", kernel.shape, "[I, O]")
    checks.check_inputs(x.shape, kernel.shape[0])
    dtype = jnp.result_type(*(a for a in (x, kernel, bias) if a is not None))
    if bias is not None:
        checks.check_floating("bias", bias)
        bias = bias.astype(dtype)
    return linear_operation(
        dense(),
        x.astype(dtype),
        kernel.astype(dtype),
        bias,
        gate=gate,
        rule=rule,
        axis_name=axis_name,
    )


def linear_operation(
    operation: LinearOperation,
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    *,
    gate: Gate,
    rule: Rule,
    axis_name: AxisName | None,
) -> jax.Array:
    """`neuronwise_dense` for any operation that is linear in its kernel; one dtype throughout."""
    checks.check_rule(rule)
    resolve_gate(gate)
    if bias is not None:
        checks.check_bias(bias.shape, kernel.shape[-1])
    if rule.gradient == "plain":
        return _primal(operation, x, kernel, bias)
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    rule = jax.tree.map(lambda knob: lax.stop_gradient(jnp.asarray(knob, dtype)), rule)
    x, kernel, bias = _varying_alike(x, kernel, bias)
    slope_function, constants = _slope_function(operation, gate, x, kernel, bias, rule)
    return _neuronwise(operation, slope_function, axis_name, x, kernel, bias, rule, constants)


def _varying_alike(*arrays: Any) -> Any:
    """Let all arrays vary over the same manual mesh axes (`jax.shard_map` with check_vma).

    Then each gradient has its array's type, and JAX sums those of replicated arrays over the axes.
    """
    axes = frozenset().union(*(_varying_axes(a) for a in arrays if a is not None))

    def varying(a):
        missing = tuple(axes - _varying_axes(a))
        return lax.pcast(a, missing, to="varying") if missing else a

    return tuple(a if a is None else varying(a) for a in arrays)


def _varying_axes(a):
    kind = jax.typeof(a)
    if hasattr(kind, "manual_axis_type"):
        return kind.manual_axis_type.varying
    return kind.vma  # jax < 0.10


def _primal(operation, x, kernel, bias):
    z = operation.apply(x, kernel)
    # The bias as the host adds it, so that the result is the host's to the last bit.
    return z if bias is None else z + jnp.reshape(bias, (1,) * (z.ndim - 1) + (-1,))


def _slope_function(operation, gate, x, kernel, bias, rule):
    """(f, constants) with f(z, *constants) the slope; the constants are what the gate closes over.

    A learnable slope, say: `jax.custom_vjp` must see every traced value among its arguments.
    """
    if not needs_slope(rule.weighting):
        return lambda z: None, ()

    def rows():
        return operation.first_rows(_primal(operation, x, kernel, bias), rule.statistics_rows)

    slope = functools.partial(gate_slope, gate)
    phi = resolve_gate(gate)
    if phi is None or closed_form(phi) is not None:
        return slope, ()
    slope, constants = jax.closure_convert(slope, jax.eval_shape(rows))
    return slope, tuple(lax.stop_gradient(constant) for constant in constants)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _neuronwise(operation, slope_function, axis_name, x, kernel, bias, rule, constants):
    return _primal(operation, x, kernel, bias)


def _forward(operation, slope_function, axis_name, x, kernel, bias, rule, constants):
    z = _primal(operation, x, kernel, bias)
    slope = slope_function(operation.first_rows(z, rule.statistics_rows), *constants)
    return z, (x, kernel, bias, slope, rule, constants)


def _backward(operation, slope_function, axis_name, residuals, g_z):
    del slope_function
    x, kernel, bias, slope, rule, constants = residuals
    z, pull = jax.vjp(lambda x: operation.apply(x, kernel), x)
    (g_x,) = pull(g_z.astype(z.dtype))
    g_kernel, g_bias = _parameter_gradients(
        operation, x, kernel, g_z, slope, rule, centred=bias is not None, axis_name=axis_name
    )
    # JAX takes a cotangent of the wrong dtype without a word and fails only under scan.
    g_kernel = g_kernel.astype(kernel.dtype)
    g_bias = None if g_bias is None else g_bias.astype(bias.dtype)
    return g_x, g_kernel, g_bias, *jax.tree.map(jnp.zeros_like, (rule, constants))


_neuronwise.defvjp(_forward, _backward)


def _parameter_gradients(operation, x, kernel, g_z, slope, rule, *, centred, axis_name):
    """(g_W, g_b) in the form that `rule.gradient` asks for; g_b is None unless centred."""
    rows = operation.first_rows(g_z, rule.statistics_rows)
    devices = 1 if axis_name is None else lax.psum(1, axis_name)
    checks.check_samples(operation.samples(rows) * devices, centred)
    moments = input_moments(
        operation,
        x,
        kernel,
        slope,
        rows,
        rule,
        rule.knobs,
        centred=centred,
        axis_name=axis_name,
    )
    if centred:
        g_b = operation.bias_grad(g_z.astype(moments.sigma.dtype))
        g_w = centred_gradient(operation, x, kernel, g_z, g_b, moments)
    else:
        g_b, g_w = None, operation.kernel_grad(x, kernel, g_z)
    g_w = covariant(g_w, moments)
    return (g_w, g_b) if rule.gradient == "covariant" else pull_back(g_w, g_b, moments)
