"""Tracked statistics: the sums of a batch, kept and merged from step to step. Pure.

One layer's statistics are a dict of arrays, all at least float32, all *additive*: those of two
shards, micro-batches or calls of a layer add up to those of both. So they leave the backward pass
as gradients do: the gradient with respect to a layer's statistics is the statistics of the batch.

    calls         how often the layer was called, (); all else that is no sum is times calls
    steps         merged steps so far, ()
    knobs         shrinkage, damping, epsilon, decay, [4]
    kernel_axes_1_0, bias_axes_1_0   the order of Flax's axes, where it is another one
    divisor       what a step is divided by (`Rule.step_scale`), ()
    center        the mean of x, [C], about which the next batch is summed
    origin        what these sums are taken about, broadcasts against the kernel
    samples       how many, ()
    layer_first   sum of x - origin, layer_second: of its square (s = 1), [..., I, 1]
    mass, square  sum of s and of s^2, [..., 1, O]
    first, second sum of s (x - origin) and s (x - origin)^2, [..., I, O]

Only what the rule needs is there: no `first` without a bias, no `second` where nothing is scaled,
no `mass` where s = 1. Zero padding counts as samples of value 0, as everywhere.
"""

import jax
import jax.numpy as jnp

from jaxnorm.operations.linear import LinearOperation
from jaxnorm.rule import Rule
from jaxnorm.statistics.moments import (
    Moments,
    Sums,
    damped_sigma,
    finite_or_plain,
    layer_sums,
    raw_moments,
    weighted_sums,
)
from jaxnorm.statistics.step_scale import divisor
from jaxnorm.statistics.weighting import needs_slope, raw_weight

Statistics = dict[str, jax.Array]

_SUMS = ("samples", "layer_first", "layer_second", "mass", "first", "second")


def batch_statistics(
    operation: LinearOperation,
    x: jax.Array,
    kernel: jax.Array,
    slope: jax.Array | None,
    g_z: jax.Array,
    rule: Rule,
    center: jax.Array,
    *,
    centered: bool,
) -> Statistics:
    """The statistics of one batch; flat axes, see `LinearOperation.flat`.

    Args:
        operation: the layer's linear operation.
        x: inputs [..., C].
        kernel: gives shapes and types only.
        slope: phi'(z) on the rows that the statistics use, or None.
        g_z: gradient at z on these rows.
        rule: see `Rule`.
        center: [C], about which the sums are taken.
        centered: False where there is no bias to absorb a mean.
    """
    dtype = center.dtype
    outputs = kernel.shape[-1]
    x = operation.first_rows(x, rule.statistics_rows).astype(dtype)
    g_z = g_z.astype(dtype)
    mean = operation.bias_grad(x) / max(operation.samples(x), 1)
    scaled = rule.scale != "none"
    by = divisor(rule.step_scale, operation, x, kernel, g_z, rule.damping, rule.epsilon)
    # Not a constant: in `jax.shard_map` all of this varies over the axes that the statistics do.
    one = jnp.ones_like(jnp.sum(center))
    result = {
        "calls": one,
        "steps": 0 * one,
        "knobs": jnp.stack([one * k for k in (*rule.knobs, rule.decay)]),
        "divisor": one * by,
        "center": mean,
        "samples": one * operation.samples(g_z),
    }
    shift = jnp.zeros_like(center)
    if centered:
        shift = center
        x = x - operation.over_samples(shift, x)
        result["origin"] = operation.per_tap(shift, kernel)
        if operation.mask is not None:
            result["mask"] = jnp.asarray(operation.mask, dtype)
    shift = operation.per_tap(shift, kernel)
    layer = layer_sums(operation, x, kernel, g_z, first=centered, second=scaled)
    layer = jax.tree.map(lambda values: operation.per_output(values, outputs), layer)
    for name, axes in (("kernel", operation.kernel_axes), ("bias", operation.bias_axes)):
        if axes is not None:
            result[axes_name(name, axes)] = one
    result |= _named("layer_", _with_padding(layer, shift))
    s = raw_weight(rule.weighting, slope, g_z)
    own_scale = rule.scale == "neuron"
    if s is not None and (centered or own_scale):
        neuron = weighted_sums(operation, x, kernel, s, first=centered, second=own_scale)
        result |= {"mass": neuron.mass, "square": neuron.square}
        result |= _named("", _with_padding(neuron, shift))
    return result


def empty(
    operation: LinearOperation,
    x: jax.Array,
    kernel: jax.Array,
    z: jax.Array,
    rule: Rule,
    *,
    gated: bool,
    centered: bool,
) -> Statistics:
    """The statistics of a layer before its first step: zeros.

    Args:
        operation: the layer's linear operation.
        x: gives shapes and types only, as do the next two; on Flax's axes.
        kernel: as x.
        z: as x.
        rule: see `Rule`.
        gated: whether an activation follows.
        centered: whether there is a bias.
    """
    operation = operation.unplaced()

    def batch(x, kernel, z):
        x, kernel, z = operation.flat(x, kernel, z)
        z = operation.first_rows(z, rule.statistics_rows)
        slope = z if gated and needs_slope(rule.weighting) else None
        center = jnp.zeros(x.shape[-1:], jnp.promote_types(x.dtype, jnp.float32))
        return batch_statistics(operation, x, kernel, slope, z, rule, center, centered=centered)

    # Without the shardings of the arrays, which the sums would have to respect.
    shapes = (jax.ShapeDtypeStruct(jnp.shape(a), a.dtype) for a in (x, kernel, z))
    shapes = jax.eval_shape(batch, *shapes)
    return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)


def _with_padding(sums: Sums, shift: jax.Array) -> Sums:
    """The sums over all samples, padding (x = 0) among them."""
    padding = sums.mass - sums.real
    first, second = sums.first, sums.second
    return sums._replace(
        first=None if first is None else first - shift * padding,
        second=None if second is None else second + shift**2 * padding,
    )


def _named(prefix: str, sums: Sums) -> Statistics:
    named = {f"{prefix}first": sums.first, f"{prefix}second": sums.second}
    return {name: value for name, value in named.items() if value is not None}


def axes_name(what: str, axes: tuple[int, ...]) -> str:
    """The entry that says how Flax's axes are ordered here; in its name, to be static."""
    return f"{what}_axes_{'_'.join(map(str, axes))}"


def axes_of(what: str, statistics: Statistics) -> tuple[int, ...] | None:
    """What `axes_name` says, None where the order is Flax's."""
    names = [name for name in statistics if name.startswith(f"{what}_axes_")]
    return tuple(map(int, names[0].split("_")[2:])) if names else None


def center_of(statistics: Statistics) -> jax.Array:
    """The mean of x in the batches so far, 0 before the first."""
    return statistics["center"] / jnp.maximum(statistics["calls"], 1)


def merge(old: Statistics, new: Statistics) -> Statistics:
    """The old statistics and those of a batch, ``decay`` being the share of the old.

    Chan's merge of (mass, mean, M2): both as sums about the same origin, weighted by `decay` and
    `1 - decay`. Before the first step the old sums are 0, so the moments, which are ratios of sums,
    are those of the first batch exactly: no bias to correct. A batch without any call (see
    `Rule.statistics_every`) or whose sums are not finite leaves the old ones as they are.
    """
    calls = jnp.maximum(new["calls"], 1)
    each = {name: new[name] / calls for name in _PER_CALL if name in new}
    decay = each["knobs"][3]
    finite = jnp.all(
        jnp.stack([jnp.all(jnp.isfinite(new[name])) for name in _ADDED if name in new])
    )
    # About a mean as large as what has overflowed, the next batch would overflow too.
    each["center"] = jnp.where(finite, each["center"], center_of(old))
    # Without a memory what is not finite is shown, so that it has the plain gradient.
    fresh = (new["calls"] > 0) & (finite | (decay == 0))
    moved = _about(old, each["origin"]) if "origin" in new else old
    merged = dict(new) | each | {"calls": jnp.ones_like(calls)}
    for name in _ADDED:
        if name in new:
            share, rest = (decay**2, (1 - decay) ** 2) if name == "square" else (decay, 1 - decay)
            merged[name] = jnp.where(share == 0, 0, share * moved[name]) + rest * new[name]
    merged = {name: jnp.where(fresh, merged[name], old[name]) for name in merged}
    return merged | {"steps": old["steps"] + 1}


_PER_CALL = ("knobs", "divisor", "center", "origin", "mask")
_ADDED = (*_SUMS, "square")


def usable(statistics: Statistics) -> jax.Array:
    """Whether they were ever updated, and by more than one sample that is its own mean."""
    calls = jnp.maximum(statistics["calls"], 1)
    fresh = (statistics["knobs"][3] / calls == 0) & (statistics["samples"] == 1)
    return (statistics["calls"] > 0) & ~(fresh & ("origin" in statistics))


def _about(statistics: Statistics, origin: jax.Array) -> Statistics:
    """The same sums about another origin."""
    step = origin - statistics["origin"] / jnp.maximum(statistics["calls"], 1)
    moved = dict(statistics)
    for prefix, mass in (("layer_", "samples"), ("", "mass")):
        first, second = f"{prefix}first", f"{prefix}second"
        if first in moved:
            if second in moved:
                quadratic = step**2 * statistics[mass]
                value = statistics[second] - 2 * step * statistics[first] + quadratic
                lost = _ROUNDINGS * jnp.finfo(value.dtype).eps * (statistics[second] + quadratic)
                moved[second] = jnp.where(value <= lost, 0, value)
            moved[first] = statistics[first] - step * statistics[mass]
    return moved


def moments(statistics: Statistics, *, centered: bool = True) -> Moments:
    """Each neuron's input moments, broadcasting against the kernel.

    Args:
        statistics: of a batch, or merged.
        centered: False where the bias may not move: second moments about zero.
    """
    calls = jnp.maximum(statistics["calls"], 1)
    shrinkage, damping, epsilon, _ = statistics["knobs"] / calls
    samples = statistics["samples"]
    origin = statistics.get("origin", jnp.zeros_like(samples)) / calls
    layer = _sums(statistics, "layer_", samples, samples)
    neuron = None
    # The neuron's own may be there for its mean only.
    if "mass" in statistics and (centered or "second" in statistics):
        neuron = _sums(statistics, "", statistics["mass"], statistics["square"])
    offset, variance = raw_moments(origin, layer, neuron, shrinkage)
    mean = origin + offset
    if not centered:
        variance = None if variance is None else variance + mean**2
        mean, offset = jnp.zeros_like(mean), offset - mean
    if "mask" in statistics:
        mean = jnp.where(statistics["mask"] == 0, 0, mean)
    if variance is None:
        sigma = jnp.ones_like(mean)
    else:
        sigma = damped_sigma(variance, damping, epsilon)
        if centered:
            sigma = jnp.where(_constant(variance, offset, origin), 1, sigma)
    if mean.ndim == 0:
        mean, offset = jnp.zeros_like(sigma), jnp.zeros_like(sigma)
    return finite_or_plain(Moments(statistics["center"] / calls, mean, offset, sigma))


def _constant(variance: jax.Array, offset: jax.Array, origin: jax.Array) -> jax.Array:
    """Whether all that a neuron reads varies by no more than rounding: a single sample, say.

    Its gradient in the coordinates is rounding too. Divided by the root of epsilon, and brought to
    size 1 by Adam, it would be a step of rate / sqrt(epsilon).
    """
    rounding = _ROUNDINGS * jnp.finfo(variance.dtype).eps
    rounding = rounding * (variance + offset**2) + (rounding * origin) ** 2
    return jnp.all(variance <= rounding, axis=tuple(range(variance.ndim - 1)), keepdims=True)


#: How many of them a difference of two sums may have lost.
_ROUNDINGS = 16


def _sums(statistics: Statistics, prefix: str, mass: jax.Array, square: jax.Array) -> Sums:
    first, second = statistics.get(f"{prefix}first"), statistics.get(f"{prefix}second")
    return Sums(mass, square, mass, first, second)
