"""Tracked statistics: the sums of a batch, carried and merged from step to step. Pure.

All of them are *additive*: those of two shards, micro-batches or calls of a layer add up to those
of both. So they leave the backward pass as gradients do: the gradient with respect to a layer's
statistics is the statistics of the batch. Every entry depends on the samples that it counts, so
that whatever maps them sums it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from torchnorm.coordinates import Moments, known_to_be_all
from torchnorm.operations.linear import LinearOperation
from torchnorm.rule import Rule
from torchnorm.statistics.batch import Batch
from torchnorm.statistics.center import center_of
from torchnorm.statistics.moments import (
    added_to,
    damped_sigma,
    lost_to_rounding,
    raw_moments,
    resolved,
    size_of,
)
from torchnorm.statistics.weighted_sums import Sums, sums_about
from torchnorm.statistics.weighting import needs_slope, raw_weight

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
#: The shape of `Statistics.parts`.
_PARTS = (16, 16)


def _scalar(name: str, doc: str) -> Any:
    at = SCALARS.index(name)
    return property(lambda self: self.scalars.select(-1, at), doc=doc)


class Statistics(NamedTuple):
    """One layer's statistics; at least float32 but for what is packed.

    Only what the rule needs is there, the rest is None: no `first` without a bias, no `second`
    where nothing is scaled, no `mass` where s = 1. Zero padding counts as samples of value 0.

    Attributes:
        scalars: those below, [11].
        parts: how often the layer was called, first of [16, 16]. (What jaxnorm tells averages from
            sums by; PyTorch adds up, and averages nothing but parameters.)
        center: the mean of x, [C], about which the next batch is summed; times calls.
        origin: what these sums are taken about, broadcasts against the weight; times calls.
        at_mean: 1 where that is the batch's own mean, like the origin; times calls. Between 0 and 1
            where several calls had different ones, about which sums are none of all of them.
        layer_first: sum of x - origin (s = 1), [1, I, ...].
        layer_second: sum of its square.
        spread: the same where nothing is scaled, to tell what varies.
        rows_mass: of how many samples the neurons' sums are, which may be some of them (see
            `Rule.statistics_rows`; None: they are of all), [1, 1, ...].
        rows_first: as layer_first, of these samples.
        rows_second: sum of its square.
        mass: sum of s, [O, 1, ...].
        square: sum of s^2; of error weights of (s 2^40)^2, whose unit is that of the loss.
        square_large: of error weights the sum of (s 2^-24)^2, where the other is too large.
        first: sum of s (x - origin), [O, I, ...].
        second: sum of s (x - origin)^2.
        packed_first: in the place of first under `Rule.statistics_dtype`, in bfloat16.
        packed_second: likewise.
        zero_variance: 0; once merged what `settled` says, [O, 1, ...].
        zero_mean: likewise.
        zero_added: likewise.
    """

    scalars: Any
    parts: Any
    center: Any
    origin: Any = None
    at_mean: Any = None
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

    samples = _scalar("samples", "How many samples the sums hold.")
    relative = _scalar("relative", '1 if ``Rule.step_size`` is "plain", 0 if not; times calls.')
    shrinkage = _scalar("shrinkage", "See `Rule`; times calls.")
    damping = _scalar("damping", "See `Rule`; times calls.")
    epsilon = _scalar("epsilon", "See `Rule`; times calls.")
    decay = _scalar("decay", "See `Rule`; times calls.")
    skipped = _scalar("skipped", "In how many steps the layer made none (see `skipped_steps`).")
    age = _scalar("age", "How many steps ago they were taken, where that was written.")
    is_settled = _scalar("settled", "1 where they are coordinates, as `settled` makes them.")

    @property
    def calls(self) -> Any:
        """How often the layer was called."""
        return self.parts.select(-1, 0).select(-1, 0)

    @property
    def steps_and_age(self) -> tuple[int, int]:
        """Merged steps, and how many ago they were taken, as `with_steps` has written them."""
        each = (self.scalars[..., SCALARS.index(name)] for name in ("rounds", "steps", "age"))
        rounds, rest, age = (int(value.max()) for value in each)
        return ROUND * rounds + rest, age

    @property
    def mean(self) -> Any:
        """Of x in the last batch, 0 before the first."""
        return self.center / self.calls.clamp_min(1)[..., None]

    def present(self) -> dict[str, Any]:
        """{field: tensor}, of those that are there."""
        return {name: value for name, value in self._asdict().items() if value is not None}

    def map(self, change: Callable[..., Any], *others: "Statistics") -> "Statistics":
        """`change` of each field that is there, with that of the others."""
        fields = zip(self, *others, strict=True)
        return Statistics(*(None if each[0] is None else change(*each) for each in fields))

    @property
    def is_packed(self) -> bool:
        """Whether what has an entry for each weight is in bfloat16."""
        return any(getattr(self, name) is not None for name in PACKED.values())

    def packed(self) -> "Statistics":
        """With what has an entry for each weight in bfloat16, and under other names.

        No mere dtype: of settled ones it is other numbers, see `merging.settled`.
        """
        new = {few: getattr(self, name) for name, few in PACKED.items()}
        new = {few: None if v is None else v.to(torch.bfloat16) for few, v in new.items()}
        return self._replace(**dict.fromkeys(PACKED), **new)

    def unpacked(self) -> "Statistics":
        """The same numbers where they are usually, with as many digits as all others."""
        if not self.is_packed:
            return self
        new = {name: getattr(self, few) for name, few in PACKED.items()}
        new = {n: None if v is None else v.to(self.scalars.dtype) for n, v in new.items()}
        return self._replace(**dict.fromkeys(PACKED.values()), **new)

    def with_scalars(self, **values: Any) -> "Statistics":
        """With some of the scalars replaced."""
        scalars = self.scalars.clone()
        for name, value in values.items():
            at = scalars.select(-1, SCALARS.index(name))
            at.copy_(value) if isinstance(value, torch.Tensor) else at.fill_(value)
        return self._replace(scalars=scalars)

    def with_steps(self, steps: int, age: int) -> "Statistics":
        """With a number of steps, exactly, and how many ago they were taken."""
        like, numbers = self.samples, (*divmod(steps, ROUND), age)
        rounds, rest, ago = (like.new_full((), float(number)) for number in numbers)
        return self.with_scalars(steps=rest, rounds=rounds, age=ago)

    def counted(self) -> "Statistics":
        """As of one call."""
        calls = self.calls
        if known_to_be_all(calls <= 1):
            return self
        calls = calls.clamp_min(1)
        first, last = SCALARS.index(_PER_CALL[0]), SCALARS.index(PER_STEP[0])
        scalars = self.scalars[:first], self.scalars[first:last] / calls, self.scalars[last:]
        origin, at_mean = (
            None if each is None else each / calls for each in (self.origin, self.at_mean)
        )
        if at_mean is not None:  # several calls have as many means
            at_mean = torch.where(calls < 1.5, at_mean, at_mean.clamp_max(0.5))
        return self._replace(
            scalars=torch.cat(scalars),
            parts=self.parts / calls,
            center=self.mean,
            origin=origin,
            at_mean=at_mean,
        )


def of_batch(batch: Batch, before: torch.Tensor | None = None) -> Statistics:
    """The statistics of one batch, its sums taken about the center [C] of those before."""
    operation, mean = batch.operation, batch.mean
    center, at_mean = center_of(batch, mean, before)
    s = raw_weight(batch)
    both = sums_about(batch, center, s, spread=batch.centered)
    layer, neuron = (None if sums is None else sums.with_padding() for sums in both)
    assert layer is not None
    scaled = batch.rule.scale != "none"
    rows = None if neuron is None else neuron.rows
    square, square_large = None if neuron is None else neuron.square, None
    if neuron is not None and s is not None and batch.rule.weighting == "error":
        counted = batch.rows.counted
        square, square_large = (
            operation.per_neuron(operation.bias_grad(counted((s * unit) ** 2)), batch.weight)
            for unit in _UNITS
        )
        square, square_large = (value.clamp_max(_MOST) for value in (square, square_large))
    one_call = mean.new_zeros(_PARTS)
    one_call[0, 0].fill_(1)  # (to assign a number would copy it from the CPU)
    found = Statistics(
        scalars=_scalars(batch),
        parts=one_call,
        center=mean,
        origin=operation.per_tap(center, batch.weight) if batch.centered else None,
        at_mean=operation.per_tap(at_mean, batch.weight) if batch.centered else None,
        layer_first=layer.first,
        layer_second=layer.second if scaled else None,
        spread=None if scaled else layer.second,
        rows_mass=None if rows is None else rows.mass,
        rows_first=None if rows is None else rows.first,
        rows_second=None if rows is None else rows.second,
        mass=None if neuron is None else neuron.mass,
        square=square,
        square_large=square_large,
        first=None if neuron is None else neuron.first,
        second=None if neuron is None else neuron.second,
        **_nothing_about_zero(neuron if batch.centered else None),
    )
    if not batch.operation.samples(batch.g_z):
        # No call: an empty share of a batch has no mean and no knobs to be averaged.
        return found.map(torch.zeros_like)
    if batch.every.counts is not None:
        counted = batch.samples > 0
        found = found.map(lambda value: torch.where(counted, value, 0))
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        # vmap does not sum what is the same for every example: let all depend on the samples.
        one = torch.ones_like(mean.sum() + batch.rows.g_z.sum())
        return found.map(lambda value: value * one)
    return found


def _nothing_about_zero(neuron: Sums | None) -> dict[str, Any]:
    """The place of what `settled` leaves for neurons whose bias may not move."""
    if neuron is None or neuron.second is None:
        return {}
    return {name: torch.zeros_like(neuron.mass) for name in ABOUT_ZERO}


def _scalars(batch: Batch) -> torch.Tensor:
    knobs = (*batch.rule.knobs, batch.rule.decay)
    samples = batch.samples if batch.every.counts is not None else float(batch.samples)
    values = (samples, float(batch.rule.step_size == "plain"), *knobs, *[0.0] * len(PER_STEP))
    like = batch.every.x
    if like.device.type == "cpu" and not any(isinstance(v, torch.Tensor) for v in values):
        return like.new_tensor(values)
    # Filled on the device: a copy from the CPU would wait for it.
    if any(isinstance(v, torch.Tensor) for v in values):
        each = (v.to(like) if isinstance(v, torch.Tensor) else like.new_full((), v) for v in values)
        return torch.stack(list(each))
    scalars = like.new_zeros(len(values))
    for at, value in enumerate(values):
        if value:
            scalars[at].fill_(value)
    return scalars


def empty(
    operation: LinearOperation, weight: torch.Tensor, rule: Rule, *, gated: bool, centered: bool
) -> Statistics:
    """The statistics of a layer before its first step: zeros.

    Args:
        operation: the layer's linear operation; only its groups matter.
        weight: of the layer, as the operation takes it; gives shape, dtype and device.
        rule: see `Rule`.
        gated: whether an activation follows.
        centered: whether there is a bias.
    """
    shapes = shapes_of(operation, weight, rule, gated=gated, centered=centered)
    dtype = torch.promote_types(weight.dtype, torch.float32)
    # Not weight.new_zeros: the statistics of a sharded weight are whole.
    zeros = shapes.map(lambda shape: torch.zeros(shape, dtype=dtype, device=weight.device))
    # (Again, for their dtype: so far there are names only.)
    return zeros.unpacked().packed() if zeros.is_packed else zeros


def shapes_of(
    operation: LinearOperation, weight: torch.Tensor, rule: Rule, *, gated: bool, centered: bool
) -> Statistics:
    """The shapes of `empty`."""
    outputs, inputs, *taps = weight.shape
    layer = (1 if operation.groups == 1 else outputs, inputs, *taps)
    neuron = (outputs, *[1] * (weight.ndim - 1))
    scaled, neuron_scale = rule.scale != "none", rule.scale == "neuron"
    weighted = rule.weighting == "error" or (needs_slope(rule.weighting) and gated)
    weighted = weighted and (centered or neuron_scale)
    about_zero = neuron if weighted and centered and neuron_scale else None
    thinned = weighted and rule.statistics_rows is not None
    first = tuple(weight.shape) if weighted and centered else None
    second = tuple(weight.shape) if weighted and neuron_scale else None
    single = PACKED if rule.statistics_dtype is not None else {name: name for name in PACKED}
    return Statistics(
        scalars=(len(SCALARS),),
        parts=_PARTS,
        center=(inputs * operation.groups,),
        origin=(*layer[:2], *[1] * len(taps)) if centered else None,
        at_mean=(*layer[:2], *[1] * len(taps)) if centered else None,
        layer_first=layer if centered else None,
        layer_second=layer if scaled else None,
        spread=layer if centered and not scaled else None,
        rows_mass=(layer[0], *[1] * (weight.ndim - 1)) if thinned else None,
        rows_first=layer if thinned and centered else None,
        rows_second=layer if thinned and neuron_scale else None,
        mass=neuron if weighted else None,
        square=neuron if weighted else None,
        square_large=neuron if weighted and rule.weighting == "error" else None,
        **{single["first"]: first, single["second"]: second},
        **dict.fromkeys(ABOUT_ZERO, about_zero),
    )


class Raw(NamedTuple):
    """What sums tell: mean, offset = mean - origin, and the variance, None where none is taken.

    And what of that may be rounding.
    """

    mean: Any
    offset: Any
    variance: Any
    lost: Any

    @property
    def about_mean(self) -> Any:
        """The variance; 0 where it is nothing but rounding."""
        return resolved(self.variance, self.lost)

    @property
    def about_zero(self) -> Any:
        """Likewise the second moment."""
        return resolved(torch.addcmul(self.variance, self.mean, self.mean), self.lost)


def raw_of(statistics: Statistics, *, centered: bool) -> Raw:
    """The moments that the sums of one batch, or averages of them, tell."""
    origin = statistics.origin
    origin = torch.zeros_like(statistics.samples) if origin is None else origin
    scaled = statistics.layer_second is not None
    second = statistics.layer_second if scaled else statistics.spread
    samples = statistics.samples
    layer = Sums(samples, samples, statistics.layer_first, second)
    neuron = None
    # The neuron's own may be there for its mean only.
    if statistics.mass is not None and (centered or statistics.second is not None):
        neuron = _neuron(statistics)
    offset, variance = raw_moments(layer, neuron, statistics.shrinkage)
    lost = None if variance is None else lost_to_rounding(offset, origin)
    return Raw(origin + offset, offset, variance, lost)


def sizes_of(variance: torch.Tensor, statistics: Statistics) -> tuple[Any, Any]:
    """(added, divisor) of sigma^2 = (variance + added) / divisor^2."""
    added = added_to(variance, statistics.damping, statistics.epsilon)
    return added, size_of(variance, added, statistics.relative)


def of_sums(statistics: Statistics, *, centered: bool) -> Moments:
    """What the sums of one batch, or averages of them, tell; finite or not."""
    raw = raw_of(statistics, centered=centered)
    mean, offset, variance, _ = raw
    if variance is not None:
        variance = raw.about_mean if centered else raw.about_zero
    if not centered:
        mean, offset = torch.zeros_like(mean), offset - mean
    varies = sigma = None
    if variance is not None:
        if centered:
            varies = variance
        if statistics.layer_second is not None:
            added, divisor = sizes_of(variance, statistics)
            sigma = damped_sigma(variance, added) / divisor
    varies = torch.ones_like(mean, dtype=torch.bool) if varies is None else varies
    sigma = torch.ones_like(mean) if sigma is None else sigma
    if mean.ndim == 0:
        mean, offset = torch.zeros_like(sigma), torch.zeros_like(sigma)
    return Moments(statistics.center, mean, offset, sigma, varies)


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
    one = torch.where(mass == 0, 1, mass)
    small, large = (
        s / (one * unit) / (one * unit)
        for s, unit in zip((square, statistics.square_large), _UNITS, strict=True)
    )
    # An average of such as were cut off is below the most that they can be.
    square = torch.where(square < _MOST / 2**20, small, large)
    first, second = (None if each is None else each / one for each in (first, second))
    return Sums(mass / one, square, first, second, rows=rows)
