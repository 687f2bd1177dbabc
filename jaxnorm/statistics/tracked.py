"""Tracked statistics: the sums of a batch, carried and merged from step to step. Pure.

All of them are *additive*: those of two shards, micro-batches or calls of a layer add up to those
of both. So they leave the backward pass as gradients do: the gradient with respect to a layer's
statistics is the statistics of the batch.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxnorm.coordinates import Moments
from jaxnorm.operations.linear import LinearOperation
from jaxnorm.rule import Rule
from jaxnorm.statistics.batch import Batch, make_batch
from jaxnorm.statistics.moments import damped_sigma, finite_or_plain, raw_moments
from jaxnorm.statistics.step_scale import divisor
from jaxnorm.statistics.weighted_sums import Sums, sums_about
from jaxnorm.statistics.weighting import needs_slope, raw_weight

#: What `Statistics.scalars` holds, in this order.
SCALARS = ("calls", "steps", "samples", "divisor", "shrinkage", "damping", "epsilon", "decay")
#: Which of them are no sums over steps or samples, and so come once for every call of the layer.
_PER_CALL = np.array([name not in ("calls", "steps", "samples") for name in SCALARS])
#: The fields that are sums over samples.
SUMS = ("layer_first", "layer_second", "mass", "square", "first", "second")
#: How many of them a difference of two sums may have lost.
_ROUNDINGS = 16


def _scalar(name: str, doc: str) -> Any:
    at = SCALARS.index(name)
    return property(lambda self: self.scalars[..., at], doc=doc)


class Statistics(struct.PyTreeNode):
    """One layer's statistics; at least float32, with leading axes for layers that are stacked.

    Only what the rule needs is there, the rest is None: no `first` without a bias, no `second`
    where nothing is scaled, no `mass` where s = 1. Zero padding counts as samples of value 0.

    Attributes:
        scalars: those below, [8].
        center: the mean of x, [C], about which the next batch is summed; times calls.
        origin: what these sums are taken about, broadcasts against the kernel; times calls.
        mask: of the kernel, see `LinearOperation`; times calls.
        layer_first: sum of x - origin (s = 1), [..., I, 1].
        layer_second: sum of its square.
        mass: sum of s, [..., 1, O].
        square: sum of s^2.
        first: sum of s (x - origin), [..., I, O].
        second: sum of s (x - origin)^2.
        kernel_axes: see `LinearOperation`. Static.
        bias_axes: see `LinearOperation`. Static.
    """

    scalars: Any
    center: Any
    origin: Any = None
    mask: Any = None
    layer_first: Any = None
    layer_second: Any = None
    mass: Any = None
    square: Any = None
    first: Any = None
    second: Any = None
    kernel_axes: tuple[int, ...] | None = struct.field(pytree_node=False, default=None)
    bias_axes: tuple[int, ...] | None = struct.field(pytree_node=False, default=None)

    calls = _scalar("calls", "How often the layer was called.")
    steps = _scalar("steps", "Merged steps so far.")
    samples = _scalar("samples", "How many samples the sums hold.")
    divisor = _scalar("divisor", "What a step is divided by (`Rule.step_scale`); times calls.")
    shrinkage = _scalar("shrinkage", "See `Rule`; times calls.")
    damping = _scalar("damping", "See `Rule`; times calls.")
    epsilon = _scalar("epsilon", "See `Rule`; times calls.")
    decay = _scalar("decay", "See `Rule`; times calls.")

    @property
    def stack(self) -> int:
        """By how many leading axes layers are stacked."""
        return self.scalars.ndim - 1

    @property
    def shape(self) -> tuple[int, ...]:
        """What all sums broadcast to: [..., *inputs, O], O = 1 if they are the layer's only."""
        sums = (self.origin, *(getattr(self, name) for name in SUMS))
        shapes = [jnp.shape(values) for values in sums if values is not None]
        return jnp.broadcast_shapes(*shapes) if shapes else self.scalars.shape[:-1]

    def with_scalars(self, **values: Any) -> "Statistics":
        """With some of the scalars replaced."""
        every = [values.get(name, getattr(self, name)) for name in SCALARS]
        return self.replace(scalars=jnp.stack(every, axis=-1))

    def per_call(self) -> "Statistics":
        """With what comes once for every call divided by the calls; of layers not stacked."""
        calls = jnp.maximum(self.calls, 1)

        def each(value: Any) -> Any:
            return None if value is None else value / calls

        return self.replace(
            scalars=jnp.where(_PER_CALL, each(self.scalars), self.scalars),
            center=each(self.center),
            origin=each(self.origin),
            mask=each(self.mask),
        )


def of_batch(batch: Batch, center: jax.Array) -> Statistics:
    """The statistics of one batch, with sums about a center [C]."""
    operation, rule = batch.operation, batch.rule
    center = center.astype(batch.row_x.dtype)
    layer, neuron = (
        None if sums is None else sums.with_padding()
        for sums in sums_about(batch, center, raw_weight(batch))
    )
    assert layer is not None
    # Not a constant: in `jax.shard_map` all of this varies over the axes that the statistics do.
    one = jnp.ones_like(jnp.sum(center))
    scalars = (1, 0, batch.samples, divisor(batch), *rule.knobs, rule.decay)
    mask = operation.mask if batch.centered else None
    return Statistics(
        scalars=jnp.stack([one * value for value in scalars]),
        center=batch.mean,
        origin=operation.per_tap(center, batch.kernel) if batch.centered else None,
        mask=None if mask is None else jnp.asarray(mask, center.dtype),
        layer_first=layer.first,
        layer_second=layer.second,
        kernel_axes=operation.kernel_axes,
        bias_axes=operation.bias_axes,
        mass=None if neuron is None else neuron.mass,
        square=None if neuron is None else neuron.square,
        first=None if neuron is None else neuron.first,
        second=None if neuron is None else neuron.second,
    )


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

    def statistics(x, kernel, z):
        slope = z if gated and needs_slope(rule.weighting) else None
        batch = make_batch(operation, x, kernel, z, slope, rule, centered=centered)
        return of_batch(batch, batch.mean)

    # Without the shardings of the arrays, which the sums would have to respect.
    shapes = (jax.ShapeDtypeStruct(jnp.shape(a), a.dtype) for a in (x, kernel, z))
    return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(statistics, *shapes))


def merge(old: Statistics, new: Statistics) -> Statistics:
    """The old statistics and those of a batch, ``decay`` being the share of the old.

    Chan's merge of (mass, mean, M2): both as sums about the same origin, weighted by `decay` and
    `1 - decay`. Before the first step the old sums are 0, so the moments, which are ratios of sums,
    are those of the first batch exactly: no bias to correct. A batch without any call (see
    `Rule.statistics_every`) or whose sums are not finite leaves the old ones as they are.
    """
    old, each = old.with_scalars(steps=old.steps + 1), new.per_call()
    decay, moved = each.decay, _about(old, each.origin)

    def average(name: str) -> Any:
        share, rest = (decay**2, (1 - decay) ** 2) if name == "square" else (decay, 1 - decay)
        return jnp.where(share == 0, 0, share * getattr(moved, name)) + rest * getattr(new, name)

    sums = {name: getattr(new, name) for name in SUMS if getattr(new, name) is not None}
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(a)) for a in (new.samples, *sums.values())]))
    merged = each.with_scalars(
        calls=jnp.ones_like(new.calls), steps=old.steps, samples=average("samples")
    ).replace(
        # About a mean as large as what has overflowed, the next batch would overflow too.
        center=jnp.where(finite, each.center, old.per_call().center),
        **{name: average(name) for name in sums},
    )
    # Without a memory what is not finite is shown, so that it has the plain gradient.
    fresh = (new.calls > 0) & (finite | (decay == 0))
    return jax.tree.map(lambda a, b: jnp.where(fresh, a, b), merged, old)


def usable(statistics: Statistics) -> jax.Array:
    """Whether they were ever updated, and by more than one sample that is its own mean."""
    alone = (statistics.decay == 0) & (statistics.samples == 1)
    return (statistics.calls > 0) & ~(alone & (statistics.origin is not None))


def _about(statistics: Statistics, origin: Any) -> Statistics:
    """The same sums about another origin."""
    if origin is None:
        return statistics
    step = origin - statistics.per_call().origin

    def moved(first: Any, second: Any, mass: Any) -> tuple[Any, Any]:
        if first is None or second is None:
            return None if first is None else first - step * mass, second
        quadratic = step**2 * mass
        value = second - 2 * step * first + quadratic
        lost = _ROUNDINGS * jnp.finfo(value.dtype).eps * (second + quadratic)
        return first - step * mass, jnp.where(value <= lost, 0, value)

    layer = moved(statistics.layer_first, statistics.layer_second, statistics.samples)
    neuron = moved(statistics.first, statistics.second, statistics.mass)
    return statistics.replace(
        layer_first=layer[0], layer_second=layer[1], first=neuron[0], second=neuron[1]
    )


def moments(statistics: Statistics, *, centered: bool = True) -> Moments:
    """Each neuron's input moments, broadcasting against the kernel.

    Args:
        statistics: of a batch, or merged.
        centered: False where the bias may not move: second moments about zero.
    """
    statistics = statistics.per_call()
    samples, mass, second = statistics.samples, statistics.mass, statistics.second
    origin = jnp.zeros_like(samples) if statistics.origin is None else statistics.origin
    layer = Sums(samples, samples, statistics.layer_first, statistics.layer_second)
    neuron = None
    # The neuron's sums may be there for its mean only.
    if mass is not None and (centered or second is not None):
        neuron = Sums(mass, statistics.square, statistics.first, second)
    offset, variance = raw_moments(layer, neuron, statistics.shrinkage)
    mean = origin + offset
    if not centered:
        variance = None if variance is None else variance + mean**2
        mean, offset = jnp.zeros_like(mean), offset - mean
    mean = unmasked(statistics, mean)
    if variance is None:
        sigma = jnp.ones_like(mean)
    else:
        sigma = damped_sigma(variance, statistics.damping, statistics.epsilon)
        if centered:
            sigma = jnp.where(_constant(variance, offset, origin), 1, sigma)
    if mean.ndim == 0:
        mean, offset = jnp.zeros_like(sigma), jnp.zeros_like(sigma)
    return finite_or_plain(Moments(statistics.center, mean, offset, sigma))


def unmasked(statistics: Statistics, mean: jax.Array) -> jax.Array:
    """The mean, 0 where an entry of the kernel is switched off for good."""
    return mean if statistics.mask is None else jnp.where(statistics.mask == 0, 0, mean)


def _constant(variance: jax.Array, offset: jax.Array, origin: jax.Array) -> jax.Array:
    """Whether all that a neuron reads varies by no more than rounding: a single sample, say.

    Its gradient in the coordinates is rounding too. Divided by the root of epsilon, and brought to
    size 1 by Adam, it would be a step of rate / sqrt(epsilon).
    """
    rounding = _ROUNDINGS * jnp.finfo(variance.dtype).eps
    rounding = rounding * (variance + offset**2) + (rounding * origin) ** 2
    return jnp.all(variance <= rounding, axis=tuple(range(variance.ndim - 1)), keepdims=True)
