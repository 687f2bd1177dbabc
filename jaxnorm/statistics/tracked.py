"""Tracked statistics: the sums of a batch, carried and merged from step to step. Pure.

All of them are *additive*: those of two shards, micro-batches or calls of a layer add up to those
of both. So they leave the backward pass as gradients do: the gradient with respect to a layer's
statistics is the statistics of the batch. Every entry depends on the samples that it counts, so
that whatever maps them sums it; and what is read off is a ratio, so that a factor that all have in
common (a loss scale, a mean over shards) is none (see `parts.py`).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxnorm.coordinates import Moments
from jaxnorm.operations.linear import LinearOperation
from jaxnorm.rule import Rule
from jaxnorm.statistics import parts
from jaxnorm.statistics.batch import Batch, make_batch
from jaxnorm.statistics.center import center_of
from jaxnorm.statistics.moments import (
    damped_sigma,
    raw_moments,
    resolved,
    size_of,
)
from jaxnorm.statistics.weighted_sums import Sums, sums_about
from jaxnorm.statistics.weighting import needs_slope, raw_weight

#: What comes once for every call of the layer.
_PER_CALL = ("relative", "shrinkage", "damping", "epsilon", "decay")
#: What steps count; no batch adds to it.
PER_STEP = ("steps", "rounds", "skipped", "age", "settled")
#: What `Statistics.scalars` holds, in this order.
SCALARS = ("samples", *_PER_CALL, *PER_STEP)
#: How a neuron's sigma^2 about zero is made of what there is: see `settled`.
ABOUT_ZERO = ("zero_variance", "zero_mean", "zero_added")
#: The sums with a weight of 1.
LAYER = ("layer_first", "layer_second", "spread")
#: What the layer's own sums over the rows that the neurons' are of are called (see `Sums`).
ROWS = ("rows_mass", "rows_first", "rows_second")
#: The fields that are sums over samples.
SUMS = (*LAYER, *ROWS, "mass", "square", "square_large", "first", "second")
#: What has an entry for each weight, and what takes its place (see `Statistics.packed`).
PACKED = {"first": "packed_first", "second": "packed_second"}
#: In which units the weight is squared, where it is a squared gradient itself.
_UNITS, _MOST = (2.0**40, 2.0**-24), 2.0**100
#: Steps are counted in rounds of so many: float32 has no odd numbers beyond 2^24.
ROUND = 2**20


def _scalar(name: str, doc: str) -> Any:
    at = SCALARS.index(name)
    return property(lambda self: self.scalars[..., at], doc=doc)


class Statistics(struct.PyTreeNode):
    """One layer's statistics; at least float32 but for what is packed; leading axes for stacks.

    Only what the rule needs is there, the rest is None: no `first` without a bias, no `second`
    where nothing is scaled, no `mass` where s = 1. Zero padding counts as samples of value 0.

    Attributes:
        scalars: those below, [11].
        parts: which calls were added up (see `parts.py`), [16, 16].
        center: the mean of x, [C], about which the next batch is summed; times calls.
        origin: what these sums are taken about, broadcasts against the kernel; times calls.
        at_mean: 1 where that is the batch's own mean, like the origin; times calls. Between 0 and 1
            where several calls had different ones, about which sums are none of all of them.
        mask: of the kernel, see `LinearOperation`; times calls.
        layer_first: sum of x - origin (s = 1), [..., I, 1].
        layer_second: sum of its square.
        spread: the same where nothing is scaled, to tell what varies.
        rows_mass: of how many samples the neurons' sums are, which may be some of them (see
            `Rule.statistics_rows`; None: they are of all), [..., 1, 1].
        rows_first: as layer_first, of these samples.
        rows_second: sum of its square.
        mass: sum of s, [..., 1, O].
        square: sum of s^2; of error weights of (s 2^40)^2, whose unit is that of the loss.
        square_large: of error weights the sum of (s 2^-24)^2, where the other is too large.
        first: sum of s (x - origin), [..., I, O].
        second: sum of s (x - origin)^2.
        packed_first: in the place of first under `Rule.statistics_dtype`, in bfloat16.
        packed_second: likewise.
        zero_variance: 0; once merged what `settled` says, [..., 1, O].
        zero_mean: likewise.
        zero_added: likewise.
        kernel_axes: see `LinearOperation`. Static.
        bias_axes: see `LinearOperation`. Static.
        kernel_path: where the kernel is among the parameters; None: "kernel" beside it. Static.
        bias_path: where the bias is, if there is one; None: "bias" beside it. Static.
        interval: see `Rule.interval`. Static.
        remembers: see `Rule.remembers`. Static.
        smoothing: see `Rule`. Static.
        unit: what those of a batch are multiplied by (see `beside_gradients`). Static.
    """

    scalars: Any
    parts: Any
    center: Any
    origin: Any = None
    at_mean: Any = None
    mask: Any = None
    layer_first: Any = None
    layer_second: Any = None
    spread: Any = None
    rows_mass: Any = None
    rows_first: Any = None
    rows_second: Any = None
    mass: Any = None
    square: Any = None
    square_large: Any = None
    first: Any = None
    second: Any = None
    packed_first: Any = None
    packed_second: Any = None
    zero_variance: Any = None
    zero_mean: Any = None
    zero_added: Any = None
    kernel_axes: tuple[int, ...] | None = struct.field(pytree_node=False, default=None)
    bias_axes: tuple[int, ...] | None = struct.field(pytree_node=False, default=None)
    kernel_path: tuple[str, ...] | None = struct.field(pytree_node=False, default=None)
    bias_path: tuple[str, ...] | None = struct.field(pytree_node=False, default=None)
    interval: int = struct.field(pytree_node=False, default=1)
    remembers: bool = struct.field(pytree_node=False, default=True)
    smoothing: float = struct.field(pytree_node=False, default=0.0)
    unit: float = struct.field(pytree_node=False, default=1.0)

    samples = _scalar("samples", "How many samples the sums hold.")
    relative = _scalar("relative", '1 if ``Rule.step_size`` is "plain", 0 if not; times calls.')
    shrinkage = _scalar("shrinkage", "See `Rule`; times calls.")
    damping = _scalar("damping", "See `Rule`; times calls.")
    epsilon = _scalar("epsilon", "See `Rule`; times calls.")
    decay = _scalar("decay", "See `Rule`; times calls.")
    skipped = _scalar("skipped", "In how many steps the layer made none (see `skipped_steps`).")
    age = _scalar("age", "How many steps ago they were taken; 0: they are those of a batch.")
    is_settled = _scalar("settled", "1 where they are coordinates, as `settled` makes them.")

    @property
    def calls(self) -> jax.Array:
        """How often the layer was called."""
        return self.parts[..., 0, 0]

    @property
    def steps(self) -> jax.Array:
        """Merged steps so far, int32."""
        rounds, rest = (
            self.scalars[..., SCALARS.index(name)].astype(jnp.int32) for name in ("rounds", "steps")
        )
        return ROUND * rounds + rest

    @property
    def settles(self) -> bool:
        """Whether merged ones are coordinates (see `settled`): where they are used for long."""
        return self.mass is not None and self.interval > 1 and not self.remembers

    @property
    def stack(self) -> int:
        """By how many leading axes layers are stacked."""
        return self.scalars.ndim - 1

    @property
    def shape(self) -> tuple[int, ...]:
        """What all sums broadcast to: [..., *inputs, O], O = 1 if they are the layer's only."""
        sums = (self.origin, *(getattr(self, name) for name in (*SUMS, *PACKED.values())))
        shapes = [jnp.shape(values) for values in sums if values is not None]
        return jnp.broadcast_shapes(*shapes) if shapes else self.scalars.shape[:-1]

    def with_scalars(self, **values: Any) -> "Statistics":
        """With some of the scalars replaced."""
        places, scalars = np.arange(len(SCALARS)), self.scalars
        for name, value in values.items():  # without taking apart what is one array
            here = places == SCALARS.index(name)
            scalars = jnp.where(here, jnp.expand_dims(value, -1), scalars)
        return self.replace(scalars=scalars)

    @property
    def is_packed(self) -> bool:
        """Whether what has an entry for each weight is in bfloat16."""
        return any(getattr(self, name) is not None for name in PACKED.values())

    def packed(self) -> "Statistics":
        """With what has an entry for each weight in bfloat16, and under other names.

        No mere dtype: of settled ones it is other numbers, see `merging.settled`.
        """
        new = {few: getattr(self, name) for name, few in PACKED.items()}
        new = {few: None if v is None else v.astype(jnp.bfloat16) for few, v in new.items()}
        return self.replace(**dict.fromkeys(PACKED), **new)

    def unpacked(self) -> "Statistics":
        """The same numbers where they are usually, with as many digits as all others."""
        if not self.is_packed:
            return self
        new = {name: getattr(self, few) for name, few in PACKED.items()}
        new = {n: None if v is None else v.astype(self.scalars.dtype) for n, v in new.items()}
        return self.replace(**dict.fromkeys(PACKED.values()), **new)

    def counted(self) -> "Statistics":
        """As of one call, and without a common factor; of layers not stacked."""
        called = self.calls > 0
        factor, calls = (
            jnp.where(called, n, 1) for n in (parts.common_factor(self.parts), self.calls)
        )

        def over(number: Any, value: Any) -> Any:
            return None if value is None else value / number

        at_mean = over(calls, self.at_mean)
        if at_mean is not None:  # several calls have as many means
            at_mean = jnp.where(calls < 1.5 * factor, at_mean, jnp.minimum(at_mean, 0.5))
        # (A product with what is large: XLA computes a quotient apart from what it is for.)
        share = 1 / factor
        sums = {name: getattr(self, name) for name in SUMS}
        sums = {name: None if value is None else share * value for name, value in sums.items()}
        places = np.arange(len(SCALARS))
        divisors = jnp.where(places > len(_PER_CALL), 1, jnp.where(places == 0, factor, calls))
        return self.replace(
            scalars=over(divisors, self.scalars),
            parts=jnp.where(called, parts.one_call(self.parts), 0),
            center=over(calls, self.center),
            origin=over(calls, self.origin),
            at_mean=at_mean,
            mask=over(calls, self.mask),
            **sums,
        )


def of_batch(
    batch: Batch, before: Statistics | None = None, position: Any = np.uint32(0)
) -> Statistics:
    """The statistics of one batch, with sums about the center of those before.

    `position` tells it from others of the same values (see `handed_on`).
    """
    operation, rule, mean = batch.operation, batch.rule, batch.mean
    known = None if before is None else before.counted().center
    center, at_mean = center_of(batch, mean, known)
    s = raw_weight(batch)
    both = sums_about(batch, center, s, spread=batch.centered)
    layer, neuron = (None if sums is None else sums.with_padding() for sums in both)
    assert layer is not None
    scaled = rule.scale != "none"
    rows = None if neuron is None else neuron.rows
    square, square_large = None if neuron is None else neuron.square, None
    if neuron is not None and s is not None and rule.weighting == "error":
        counted = batch.rows.counted
        square, square_large = (
            operation.per_neuron(operation.bias_grad(counted((s * unit) ** 2)), batch.kernel)
            for unit in _UNITS
        )
        square, square_large = (jnp.minimum(value, _MOST) for value in (square, square_large))
    marks = parts.of_call(mean, operation.bias_grad(batch.rows.g_z), position=position)
    per_call = (float(rule.step_size == "plain"), *rule.knobs, rule.decay)
    scalars = jnp.stack([jnp.asarray(value, marks.dtype) for value in (batch.samples, *per_call)])
    mask = operation.mask
    found = Statistics(
        scalars=jnp.pad(scalars, (0, len(PER_STEP))),
        parts=marks,
        center=mean,
        origin=operation.per_tap(center, batch.kernel) if batch.centered else None,
        at_mean=operation.per_tap(at_mean, batch.kernel) if batch.centered else None,
        mask=None if mask is None else jnp.asarray(mask, center.dtype),
        layer_first=layer.first,
        layer_second=layer.second if scaled else None,
        spread=None if scaled else layer.second,
        rows_mass=None if rows is None else rows.mass,
        rows_first=None if rows is None else rows.first,
        rows_second=None if rows is None else rows.second,
        kernel_axes=operation.kernel_axes,
        bias_axes=operation.bias_axes,
        mass=None if neuron is None else neuron.mass,
        square=square,
        square_large=square_large,
        first=None if neuron is None else neuron.first,
        second=None if neuron is None else neuron.second,
        **_nothing_about_zero(neuron if batch.centered else None),
    )
    if isinstance(batch.samples, int) and batch.samples > 0:
        return found
    # No call, where there is no sample: an empty share of a batch has no mean to be averaged.
    one = jnp.where(batch.samples > 0, marks[0, 0], 0)
    return jax.tree.map(lambda value: one * value, found)


def _nothing_about_zero(neuron: Sums | None) -> dict[str, Any]:
    """The place of what `settled` leaves for neurons whose bias may not move."""
    if neuron is None or neuron.second is None:
        return {}
    return dict.fromkeys(ABOUT_ZERO, jnp.zeros_like(neuron.mass))


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
        found = of_batch(batch)
        found = found.packed() if rule.statistics_dtype is not None else found
        return found.replace(
            interval=rule.interval, remembers=rule.remembers, smoothing=rule.smoothing
        )

    # Without the shardings of the arrays, which the sums would have to respect.
    shapes = (jax.ShapeDtypeStruct(jnp.shape(a), a.dtype) for a in (x, kernel, z))
    return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(statistics, *shapes))


class Found(NamedTuple):
    """Moments of sums, finite or not, and sigma^2 = (variance + added) / divisor^2.

    The variance is None, and the others are numbers, where nothing is scaled.
    """

    moments: Moments
    variance: Any
    added: Any
    divisor: Any


def of_sums(statistics: Statistics, *, centered: bool) -> Found:
    """What the sums of one batch, or averages of them, tell."""
    samples, mass, second = statistics.samples, statistics.mass, statistics.second
    origin = jnp.zeros_like(samples) if statistics.origin is None else statistics.origin
    scaled = statistics.layer_second is not None
    layer_second = statistics.layer_second if scaled else statistics.spread
    layer = Sums(samples, samples, statistics.layer_first, layer_second)
    neuron = None
    # The neuron's sums may be there for its mean only.
    if mass is not None and (centered or second is not None):
        neuron = _neuron(statistics)
    offset, variance = raw_moments(layer, neuron, statistics.shrinkage)
    mean = origin + offset
    if variance is not None:
        variance = resolved(variance if centered else variance + mean**2, offset, origin)
    if not centered:
        mean, offset = jnp.zeros_like(mean), offset - mean
    mean = unmasked(statistics, mean)
    varies = jnp.ones_like(mean, dtype=bool)
    sigma, added, divisor = jnp.ones_like(mean), jnp.zeros_like(samples), jnp.ones_like(samples)
    if variance is not None:
        if centered:
            varies = variance > 0
        if scaled:
            root, added = damped_sigma(variance, statistics.damping, statistics.epsilon)
            counts = variance > 0
            if statistics.mask is not None:
                counts = counts & (statistics.mask != 0)
            divisor = size_of(root, counts, statistics.relative)
            sigma = root / divisor
    if mean.ndim == 0:
        mean, offset = jnp.zeros_like(sigma), jnp.zeros_like(sigma)
    found = Moments(statistics.center, mean, offset, sigma, varies)
    return Found(found, variance if scaled else None, added, divisor)


def _neuron(statistics: Statistics) -> Sums:
    """The neurons' sums; those under error weights in the unit of their mass."""
    mass, square = statistics.mass, statistics.square
    first, second = statistics.first, statistics.second
    rows = None
    if statistics.rows_mass is not None:
        each = (getattr(statistics, name) for name in ROWS)
        rows = Sums(statistics.rows_mass, *each, center=statistics.origin)
    if statistics.square_large is None:
        return Sums(mass, square, first, second, rows=rows)
    one = jnp.where(mass == 0, 1, mass)
    small, large = (
        s / (one * unit) / (one * unit)
        for s, unit in zip((square, statistics.square_large), _UNITS, strict=True)
    )
    # An average of such as were cut off is below the most that they can be.
    square = jnp.where(square < _MOST / 2**20, small, large)
    first, second = (None if each is None else each / one for each in (first, second))
    return Sums(mass / one, square, first, second, rows=rows)


def unmasked(statistics: Statistics, mean: jax.Array) -> jax.Array:
    """The mean, 0 where an entry of the kernel is switched off for good."""
    return mean if statistics.mask is None else jnp.where(statistics.mask == 0, 0, mean)
