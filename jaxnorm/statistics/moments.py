"""Sums over samples -> each neuron's input mean and scale. Pure, for any linear operation.

Letters: ``m`` the mass (sum of the weights s), ``c`` the shift (a layer-wide mean that every sum is
taken about, so that large means do not cancel), ``u`` the layer's own, uniformly weighted moments.
"""

import dataclasses
from collections.abc import Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm import checks
from jaxnorm.operations.linear import LinearOperation, dense
from jaxnorm.rule import Rule
from jaxnorm.statistics.weighting import sample_weight

AxisName = Hashable


class Sums(NamedTuple):
    """Sums over samples about a shift c; those of two shards add up to those of both.

    Attributes:
        mass: sum of s, [O].
        square: sum of s^2, [O].
        real: sum of s over the samples that a tap really sees, not padding; broadcasts to a kernel.
        first: sum of s (x - c) over the same, or None where no mean is taken.
        second: sum of s (x - c)^2 over the same, or None where no variance is taken.
    """

    mass: jax.Array
    square: jax.Array
    real: jax.Array
    first: Any
    second: Any


class Moments(NamedTuple):
    """Each neuron's input moments; everything broadcasts against the kernel.

    Attributes:
        shift: c per channel of x, [C].
        mean: where the inputs are centered.
        offset: mean - c, kept apart because the difference of two large numbers has lost it.
        sigma: what they are divided by.
    """

    shift: jax.Array
    mean: jax.Array
    offset: jax.Array
    sigma: jax.Array


def weighted_sums(
    operation: LinearOperation,
    x: jax.Array,
    kernel: jax.Array,
    s: jax.Array,
    *,
    first: bool,
    second: bool,
) -> Sums:
    """Sums of x (shifted already) under the sample weight s [..., O]; kernel gives the shape."""
    return Sums(
        mass=operation.per_neuron(operation.bias_grad(s), kernel),
        square=operation.per_neuron(operation.bias_grad(s * s), kernel),
        real=real_mass(operation, x, kernel, s),
        first=operation.kernel_grad(x, kernel, s) if first else None,
        second=operation.kernel_grad(x * x, kernel, s) if second else None,
    )


def real_mass(
    operation: LinearOperation, x: jax.Array, kernel: jax.Array, s: jax.Array
) -> jax.Array:
    """Sum of s over the samples that each tap really sees; one input channel tells."""
    if not operation.padded:
        return operation.per_neuron(operation.bias_grad(s), kernel)
    # What a tap sees is the same in every image: one of them tells, with s summed over all.
    ones = jnp.ones_like(operation.one_image(operation.narrow(x, -1, operation.groups)))
    return operation.kernel_grad(ones, operation.narrow(kernel, -2, 1), operation.one_image(s))


def layer_sums(
    operation: LinearOperation,
    x: jax.Array,
    kernel: jax.Array,
    z: jax.Array,
    *,
    first: bool,
    second: bool,
) -> Sums:
    """The sums with s = 1, from which the layer's own moments come; z gives the shape.

    One output per group is enough, and one image that is the sum of all.
    """
    one, few = (operation.narrow(a, -1, operation.groups) for a in (z, kernel))
    mass = operation.per_neuron(operation.bias_grad(one), few)
    real = real_mass(operation, x, few, one)
    one = jnp.ones_like(operation.one_image(one))
    return Sums(
        mass=mass,
        square=mass,
        real=real,
        first=operation.kernel_grad(operation.one_image(x), few, one) if first else None,
        second=operation.kernel_grad(operation.one_image(x * x), few, one) if second else None,
    )


def raw_moments(
    shift: jax.Array, layer: Sums, neuron: Sums | None, shrinkage: Any
) -> tuple[jax.Array, Any]:
    """(mean - c, variance) of each neuron, shrunk towards the layer's.

    About zero where the sums hold no `first`; the variance is None where they hold no `second`.

    Args:
        shift: c, broadcasting against the kernel.
        layer: sums with s = 1.
        neuron: sums with the neurons' own weights; None if those are 1 as well.
        shrinkage: see `Rule`.
    """
    count = layer.mass
    if layer.first is None:
        return jnp.zeros_like(shift), _second_about_zero(layer, neuron, shrinkage)

    layer_offset = (layer.first - shift * (count - layer.real)) / count
    layer_mean = shift + layer_offset
    variance = _second_about_layer_mean(layer, layer_offset, layer_mean)
    if variance is not None:
        variance = jnp.maximum(variance / count, 0)
    if neuron is None:
        return layer_offset, variance

    per_mass, rest = _shrink(neuron, shrinkage)
    first = neuron.first - layer_offset * neuron.real - layer_mean * (neuron.mass - neuron.real)
    step = per_mass * first
    second = _second_about_layer_mean(neuron, layer_offset, layer_mean)
    if second is not None and variance is not None:
        variance = jnp.maximum(per_mass * second + rest * variance - step * step, 0)
    return layer_offset + step, variance


def _second_about_zero(layer: Sums, neuron: Sums | None, shrinkage: Any) -> Any:
    """The second moment about zero, for layers without a bias; None where none is taken."""
    if neuron is None or neuron.second is None:
        return None if layer.second is None else layer.second / layer.mass
    per_mass, rest = _shrink(neuron, shrinkage)
    return per_mass * neuron.second + rest * (layer.second / layer.mass)


def _second_about_layer_mean(sums: Sums, layer_offset: jax.Array, layer_mean: jax.Array) -> Any:
    """Sum of s (x - layer_mean)^2, padding counted as x = 0."""
    if sums.second is None:
        return None
    moved = sums.second - 2 * layer_offset * sums.first + layer_offset**2 * sums.real
    return moved + layer_mean**2 * (sums.mass - sums.real)


def _shrink(neuron: Sums, shrinkage: Any) -> tuple[jax.Array, jax.Array]:
    """((1 - lambda) / m, lambda), lambda = kappa / (n_eff + kappa), n_eff = m^2 / sum s^2."""
    denominator = neuron.mass**2 + shrinkage * neuron.square
    per_mass = neuron.mass / jnp.where(denominator > 0, denominator, 1)
    return per_mass, 1 - per_mass * neuron.mass


def damped_sigma(variance: jax.Array, damping: Any, epsilon: Any) -> jax.Array:
    """The root of v + damping * mean(v) + epsilon, the mean over all that feeds one neuron."""
    axes = tuple(range(variance.ndim - 1))
    square = variance + damping * jnp.mean(variance, axis=axes, keepdims=True) + epsilon
    return jnp.where(square == 0, 1, jnp.sqrt(square))


def input_moments(
    operation: LinearOperation,
    x: jax.Array,
    kernel: jax.Array,
    slope: jax.Array | None,
    g_z: jax.Array,
    rule: Rule,
    knobs: tuple[Any, Any, Any],
    *,
    centered: bool = True,
    axis_name: AxisName | None = None,
) -> Moments:
    """The input moments of every neuron that uses `operation` on this batch.

    Args:
        operation: the layer's linear operation.
        x: inputs [..., C].
        kernel: gives shapes and types only.
        slope: phi'(z) on the rows that the statistics use (see `gate_slope`), or None.
        g_z: gradient at z on these rows.
        rule: see `Rule`; only its structure is used, and not `gradient`.
        knobs: shrinkage, damping, epsilon.
        centered: False where there is no bias to absorb a mean: second moments about zero.
        axis_name: mapped axes over which the batch is spread: the sums are shared over them.
    """

    def total(tree):
        return tree if axis_name is None else lax.psum(tree, axis_name)

    def maximum(values):
        top = jnp.max(values, axis=operation.sample_axes(values), keepdims=True)
        return top if axis_name is None else lax.pmax(top, axis_name)

    dtype = jnp.promote_types(x.dtype, jnp.float32)
    outputs = kernel.shape[-1]
    x = operation.first_rows(x, rule.statistics_rows).astype(dtype)
    g_z = g_z.astype(dtype)
    if centered:
        count = total(operation.samples(x))
        channel_shift = total(operation.bias_grad(x)) / count
        x = x - operation.over_samples(channel_shift, x)
    else:
        channel_shift = jnp.zeros(x.shape[-1:], dtype)
    shift = operation.per_tap(channel_shift, kernel)

    shrinkage, damping, epsilon = knobs
    scaled, own_scale = rule.scale != "none", rule.scale == "neuron"
    layer = layer_sums(operation, x, kernel, g_z, first=centered, second=scaled)
    s = sample_weight(rule.weighting, slope, g_z, maximum)
    neuron = None
    if s is not None and (centered or own_scale):
        neuron = weighted_sums(operation, x, kernel, s, first=centered, second=own_scale)
    layer, neuron = total((layer, neuron))
    layer = jax.tree.map(lambda values: operation.per_output(values, outputs), layer)
    offset, variance = raw_moments(shift, layer, neuron, shrinkage)
    if variance is None:
        sigma = jnp.ones_like(offset)
    else:
        sigma = damped_sigma(variance, damping, epsilon)
    return finite_or_plain(Moments(channel_shift, shift + offset, offset, sigma))


def finite_or_plain(moments: Moments) -> Moments:
    """Give a neuron whose moments are not finite mean 0 and sigma 1: the plain gradient.

    So a NaN in the batch, or an overflow, spreads no further than it would in the plain layer.
    """
    axes = tuple(range(moments.offset.ndim - 1))
    finite = jnp.isfinite(moments.mean) & jnp.isfinite(moments.sigma)
    finite = jnp.all(finite, axis=axes, keepdims=True)
    return moments._replace(
        mean=jnp.where(finite, moments.mean, 0),
        offset=jnp.where(finite, moments.offset, moments.offset - moments.mean),
        sigma=jnp.where(finite, moments.sigma, 1),
    )


def centered_gradient(
    operation: LinearOperation,
    x: jax.Array,
    kernel: jax.Array,
    g_z: jax.Array,
    g_b: jax.Array,
    moments: Moments,
) -> jax.Array:
    """The sum of g_z (x - mean), as a product of x - c, because g_W - mean g_b cancels."""
    dtype = g_b.dtype
    shifted = (x.astype(dtype) - operation.over_samples(moments.shift, x)).astype(x.dtype)
    product = operation.kernel_grad(shifted, kernel, g_z).astype(dtype)
    g_b = operation.per_neuron(g_b, kernel)
    if not operation.padded:
        return product - moments.offset * g_b
    # Padding is x = 0, not x = c: a tap that sees it has less real mass than the bias.
    real = real_mass(operation, shifted, kernel, g_z).astype(dtype)
    return product + (moments.mean - moments.offset) * real - moments.mean * g_b


def neuron_moments(
    x: jax.Array, sample_weight: jax.Array, rule: Rule = Rule()
) -> tuple[jax.Array, jax.Array]:
    """Mean and scale of the inputs of each neuron of a dense layer under given sample weights.

        mean[i,o] = sum_n s x / sum_n s,   sigma[i,o]^2 = var + damping mean_i(var) + epsilon

    both shrunk towards the layer's own moments where few samples carry weight (see `Rule`).

    Args:
        x: inputs [..., I], floating.
        sample_weight: s [..., O], real, one weight per sample and neuron; their unit does not
            matter. NaN and Inf count as 0, a negative one as its magnitude (with
            ``weighting="signed"`` as it is).
        rule: `scale`, `shrinkage`, `damping`, `epsilon` and `statistics_rows` are used. With
            ``scale="none"`` sigma is 1.

    Returns:
        (mean, sigma), each [I, O], in at least float32.

    Raises:
        TypeError: for an x that is not floating-point.
        ValueError: for shapes that do not fit, or fewer than two samples.

    Transformations: jit, grad, vmap (then: of each example's own batch), scan, remat.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxnorm import Rule, neuron_moments
        >>> x = jnp.array([[1.0], [3.0], [5.0]])
        >>> s = jnp.array([[1.0], [1.0], [0.0]])  # the neuron is not active on the last sample
        >>> mean, sigma = neuron_moments(x, s, Rule(shrinkage=0.0, damping=0.0))
        >>> float(mean[0, 0]), float(sigma[0, 0])
        (2.0, 1.0)
    """
    x, sample_weight = jnp.asarray(x), jnp.asarray(sample_weight)
    checks.check_floating(x=x)
    checks.check_rule(rule)
    checks.check_sample_weight(sample_weight.shape, x.shape)
    operation = dense()
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    slope = operation.first_rows(sample_weight, rule.statistics_rows).astype(dtype)
    checks.check_samples(operation.samples(slope), centered=True)
    kernel = jnp.zeros((x.shape[-1], sample_weight.shape[-1]), dtype)
    weighting = "signed" if rule.weighting == "signed" else "gate"
    rule = dataclasses.replace(rule, weighting=weighting)
    moments = input_moments(operation, x, kernel, slope, slope, rule, rule.knobs)
    mean, sigma = jnp.broadcast_arrays(moments.mean, moments.sigma, kernel)[:2]
    return mean, sigma
