"""Sums over samples -> each neuron's input mean and scale. Pure, for any linear operation."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxnorm import checks
from jaxnorm.coordinates import Moments
from jaxnorm.operations.linear import dense
from jaxnorm.precision import at_least_float32
from jaxnorm.rule import Rule
from jaxnorm.statistics import weighting
from jaxnorm.statistics.batch import Batch, make_batch
from jaxnorm.statistics.weighted_sums import ROUNDINGS, Sums, sums_about


def raw_moments(layer: Sums, neuron: Sums | None, shrinkage: Any) -> tuple[jax.Array, Any]:
    """(mean - center, variance) of each neuron, shrunk towards the layer's.

    About zero where the sums hold no `first`; the variance is None where they hold no `second`.
    Where the neuron's sums are of some rows only, these say how far its mean is from the layer's,
    and how many times as large its variance is.

    Args:
        layer: sums with s = 1.
        neuron: sums with the neurons' own weights; None if those are 1 as well.
        shrinkage: see `Rule`.
    """
    if layer.first is None:
        return jnp.zeros_like(layer.mass), _second_about_zero(layer, neuron, shrinkage)

    layer_offset, layer_variance = _layer_moments(layer)
    if neuron is None:
        return layer_offset, layer_variance

    offset, variance = layer_offset, layer_variance
    if neuron.rows is not None:
        offset, variance = _layer_moments(neuron.rows)
    per_mass, rest = _shrink(neuron, shrinkage)
    step = per_mass * _first_about(offset, neuron)
    second = _second_about(offset, neuron)
    if second is None or variance is None:
        return layer_offset + step, layer_variance
    pooled = per_mass * second + rest * variance - step * step
    # Below 0 is rounding; but not -inf, of sums that have overflowed, which has to be seen.
    pooled = jnp.where(pooled == -jnp.inf, pooled - pooled, jnp.maximum(pooled, 0))
    if neuron.rows is not None:
        origin = neuron.rows.center
        pooled = resolved(pooled, offset + step, origin)
        pooled = _scaled(layer_variance, pooled, resolved(variance, offset, origin))
    return layer_offset + step, pooled


def _layer_moments(layer: Sums) -> tuple[jax.Array, Any]:
    """(mean - center, variance) of sums with s = 1."""
    offset = layer.with_padding().first / layer.mass
    variance = _second_about(offset, layer)
    return offset, None if variance is None else jnp.maximum(variance / layer.mass, 0)


def _scaled(layer: jax.Array, neuron: jax.Array, rows: jax.Array) -> jax.Array:
    """A moment of the layer times the neuron's share of it on some rows, where those have any."""
    # (The second is the layer's, where the neuron's is finite: what is not has to be seen.)
    share = neuron / jnp.where(rows > 0, rows, 1)
    return jnp.where(rows > 0, layer * share, layer + 0 * neuron)


def _second_about_zero(layer: Sums, neuron: Sums | None, shrinkage: Any) -> Any:
    """The second moment about zero, for layers without a bias; None where none is taken."""
    if neuron is None or neuron.second is None:
        return None if layer.second is None else layer.second / layer.mass
    per_mass, rest = _shrink(neuron, shrinkage)
    rows = layer if neuron.rows is None else neuron.rows
    of_rows = rows.second / rows.mass
    pooled = per_mass * neuron.second + rest * of_rows
    return pooled if rows is layer else _scaled(layer.second / layer.mass, pooled, of_rows)


def _first_about(offset: jax.Array, sums: Sums) -> Any:
    """Sum of s (x - mean), the mean being center + offset."""
    if sums.padding is None:
        return sums.first - offset * sums.mass
    real = sums.mass - sums.padding
    return sums.first - offset * real - (sums.center + offset) * sums.padding


def _second_about(offset: jax.Array, sums: Sums) -> Any:
    """Sum of s (x - mean)^2, the mean being center + offset."""
    if sums.second is None:
        return None
    if sums.padding is None:
        return sums.second - 2 * offset * sums.first + offset**2 * sums.mass
    # Apart: where most is padding, center and offset almost cancel.
    real = sums.mass - sums.padding
    about = sums.second - 2 * offset * sums.first + offset**2 * real
    return about + (sums.center + offset) ** 2 * sums.padding


def _shrink(neuron: Sums, shrinkage: Any) -> tuple[jax.Array, jax.Array]:
    """((1 - lambda) / m, lambda), lambda = kappa / (n_eff + kappa), n_eff = m^2 / sum s^2."""
    # Not m^2: a small weight's would underflow.
    mass = jnp.where(neuron.mass == 0, 1, neuron.mass)
    per_mass = jnp.where(neuron.mass == 0, 0, 1 / (mass + shrinkage * (neuron.square / mass)))
    return per_mass, 1 - per_mass * neuron.mass


def damped_sigma(variance: jax.Array, damping: Any, epsilon: Any) -> tuple[jax.Array, jax.Array]:
    """(The root of v + added, added); added = damping * mean(v) + epsilon.

    The mean is that over all that feeds one neuron.
    """
    axes = tuple(range(variance.ndim - 1))
    added = damping * jnp.mean(variance, axis=axes, keepdims=True) + epsilon
    square = variance + added
    # Not 0: some hardware has no numbers below the smallest normal one, and some has.
    return jnp.where(square < jnp.finfo(square.dtype).tiny, 1, jnp.sqrt(square)), added


def size_of(sigma: jax.Array, counts: jax.Array, power: Any) -> jax.Array:
    """By what sigma is divided, so that a neuron's step keeps the size of the plain one.

        r^power,   r^2 = mean_i(sigma^2) over the inputs that count

    What a step of SGD does to z by way of an input's deviations is, plainly, as large as their
    variance; in coordinates with sigma absolute it is as large as 1 for each input, and relative to
    r as large as r^2, the mean of those variances: as much as before, in another direction. (Of
    Adam it is r instead of 1, where the plain one has the deviations.)

    Each neuron for itself: a layer that is split, or sharded, by its neurons takes the same steps.

    Args:
        sigma: of each neuron.
        counts: which of its inputs vary, and have a weight. The others make no step, and do not
            change that of the rest: an input that is always 0 could as well not be there.
        power: 1; with 0 sigma stays as it is.
    """
    axes = tuple(range(sigma.ndim - 1))
    count = jnp.sum(counts, axis=axes, keepdims=True, dtype=sigma.dtype)
    total = jnp.sum(jnp.where(counts, sigma * sigma, 0), axis=axes, keepdims=True)
    root = jnp.sqrt(total / jnp.maximum(count, 1))
    return jnp.where(root > 0, root, 1) ** power


def resolved(variance: jax.Array, offset: jax.Array, origin: jax.Array) -> jax.Array:
    """The variance; 0 where what a neuron reads varies by no more than rounding.

    What does not vary has no gradient in the coordinates: that would be rounding, which sigma would
    blow up and Adam bring to size 1. (In single precision a few roundings are all that some inputs
    have.)

    Args:
        variance: of sums about an origin.
        offset: the mean about that origin.
        origin: that, in the unit of x.
    """
    number = jnp.finfo(variance.dtype)
    few = ROUNDINGS if variance.dtype == jnp.float64 else ROUNDINGS / 4
    lost = 4 * few * number.eps * offset**2 + (few * number.eps * origin) ** 2
    return jnp.where(variance <= lost + number.tiny, 0, variance)


def input_moments(batch: Batch) -> Moments:
    """The input moments of every neuron, of this batch alone."""
    rule, x = batch.rule, batch.every.x
    center = batch.mean if batch.centered else jnp.zeros_like(x, shape=x.shape[-1:])
    layer, neuron = sums_about(batch, center, weighting.sample_weight(batch))
    offset, variance = raw_moments(layer, neuron, rule.shrinkage)
    origin = batch.operation.per_tap(center, batch.kernel)
    varies = jnp.ones_like(offset, dtype=bool)
    if variance is None:
        sigma = jnp.ones_like(offset)
    else:
        variance = resolved(variance, offset, origin)
        if batch.centered:
            varies = variance > 0
        sigma, _ = damped_sigma(variance, rule.damping, rule.epsilon)
        if rule.step_size == "plain":
            counts = variance > 0
            if batch.operation.mask is not None:
                counts = counts & (jnp.asarray(batch.operation.mask) != 0)
            sigma = sigma / size_of(sigma, counts, 1)
    mean = origin + offset
    return finite_or_plain(Moments(center, mean, offset, sigma, varies))


def is_finite(moments: Moments) -> jax.Array:
    """Which neurons have finite moments, [1, ..., O]."""
    axes = tuple(range(moments.offset.ndim - 1))
    # A sigma of 0 is one over a sum of squares that has overflowed.
    finite = jnp.isfinite(moments.mean) & jnp.isfinite(moments.sigma) & (moments.sigma > 0)
    return jnp.all(finite, axis=axes, keepdims=True)


def finite_or_plain(moments: Moments, finite: jax.Array | None = None) -> Moments:
    """Give a neuron whose moments are not finite mean 0 and sigma 1: the plain gradient.

    So a NaN in the batch, or an overflow, spreads no further than it would in the plain layer.

    Args:
        moments: of each neuron.
        finite: which of them are, if that is known.
    """
    finite = is_finite(moments) if finite is None else finite
    return moments._replace(
        mean=jnp.where(finite, moments.mean, 0),
        offset=jnp.where(finite, moments.offset, moments.offset - moments.mean),
        sigma=jnp.where(finite, moments.sigma, 1),
        varies=moments.varies | ~finite,
    )


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
    dtype = at_least_float32(x.dtype)
    kernel = jnp.zeros((x.shape[-1], sample_weight.shape[-1]), dtype)
    weighting = "signed" if rule.weighting == "signed" else "gate"
    rule = dataclasses.replace(rule, weighting=weighting, step_size="standardized")
    s = sample_weight.astype(dtype)
    batch = make_batch(dense(), x, kernel, s, s, rule, centered=True)
    checks.check_samples(batch.samples, centered=True)
    moments = input_moments(batch)
    mean, sigma = jnp.broadcast_arrays(moments.mean, moments.sigma, kernel)[:2]
    return mean, sigma
