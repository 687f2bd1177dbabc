"""Tracked statistics: the sums of a batch, carried and merged from step to step. Pure.

All of them are *additive*: those of two shards, micro-batches or calls of a layer add up to those
of both. So they leave the backward pass as gradients do: the gradient with respect to a layer's
statistics is the statistics of the batch.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from torchnorm.coordinates import Moments
from torchnorm.operations.linear import LinearOperation
from torchnorm.rule import Rule
from torchnorm.statistics.batch import Batch
from torchnorm.statistics.moments import damped_sigma, finite_or_plain, raw_moments
from torchnorm.statistics.step_scale import divisor
from torchnorm.statistics.weighted_sums import Sums, sums_about
from torchnorm.statistics.weighting import needs_slope, raw_weight

#: What `Statistics.scalars` holds, in this order.
SCALARS = ("calls", "steps", "samples", "divisor", "shrinkage", "damping", "epsilon", "decay")
#: From here on they are no sums over steps or samples, and come once for every call of the layer.
_PER_CALL = SCALARS.index("divisor")
#: The fields that are sums over samples.
SUMS = ("layer_first", "layer_second", "mass", "square", "first", "second")
#: How many of them a difference of two sums may have lost.
_ROUNDINGS = 16


def _scalar(name: str, doc: str) -> Any:
    at = SCALARS.index(name)
    return property(lambda self: self.scalars[at], doc=doc)


class Statistics(NamedTuple):
    """One layer's statistics; at least float32.

    Only what the rule needs is there, the rest is None: no `first` without a bias, no `second`
    where nothing is scaled, no `mass` where s = 1. Zero padding counts as samples of value 0.

    Attributes:
        scalars: those below, [8].
        center: the mean of x, [C], about which the next batch is summed; times calls.
        origin: what these sums are taken about, broadcasts against the weight; times calls.
        layer_first: sum of x - origin (s = 1), [1, I, ...].
        layer_second: sum of its square.
        mass: sum of s, [O, 1, ...].
        square: sum of s^2.
        first: sum of s (x - origin), [O, I, ...].
        second: sum of s (x - origin)^2.
    """

    scalars: Any
    center: Any
    origin: Any = None
    layer_first: Any = None
    layer_second: Any = None
    mass: Any = None
    square: Any = None
    first: Any = None
    second: Any = None

    calls = _scalar("calls", "How often the layer was called.")
    steps = _scalar("steps", "Merged steps so far.")
    samples = _scalar("samples", "How many samples the sums hold.")
    divisor = _scalar("divisor", "What a step is divided by (`Rule.step_scale`); times calls.")
    shrinkage = _scalar("shrinkage", "See `Rule`; times calls.")
    damping = _scalar("damping", "See `Rule`; times calls.")
    epsilon = _scalar("epsilon", "See `Rule`; times calls.")
    decay = _scalar("decay", "See `Rule`; times calls.")

    @property
    def mean(self) -> Any:
        """Of x in the batches so far, 0 before the first."""
        return self.center / self.calls.clamp_min(1)

    def present(self) -> dict[str, Any]:
        """{field: tensor}, of those that are there."""
        return {name: value for name, value in self._asdict().items() if value is not None}

    def map(self, change: Callable[..., Any], *others: "Statistics") -> "Statistics":
        """`change` of each field that is there, with that of the others."""
        fields = zip(self, *others, strict=True)
        return Statistics(*(None if each[0] is None else change(*each) for each in fields))

    def with_scalars(self, **values: Any) -> "Statistics":
        """With some of the scalars replaced."""
        every = [values.get(name, getattr(self, name)) for name in SCALARS]
        return self._replace(scalars=torch.stack(every))

    def per_call(self) -> "Statistics":
        """With what comes once for every call divided by the calls."""
        calls = self.calls.clamp_min(1)
        scalars = torch.cat([self.scalars[:_PER_CALL], self.scalars[_PER_CALL:] / calls])
        origin = None if self.origin is None else self.origin / calls
        return self._replace(scalars=scalars, center=self.mean, origin=origin)


def of_batch(batch: Batch, center: torch.Tensor) -> Statistics:
    """The statistics of one batch, its sums taken about the center [C]."""
    center = center.to(batch.row_x.dtype)
    layer, neuron = (
        None if sums is None else sums.with_padding()
        for sums in sums_about(batch, center, raw_weight(batch))
    )
    assert layer is not None
    result = Statistics(
        scalars=_scalars(batch),
        center=batch.mean,
        origin=batch.operation.per_tap(center, batch.weight) if batch.centered else None,
        layer_first=layer.first,
        layer_second=layer.second,
        mass=None if neuron is None else neuron.mass,
        square=None if neuron is None else neuron.square,
        first=None if neuron is None else neuron.first,
        second=None if neuron is None else neuron.second,
    )
    # No call: an empty share of a batch has no mean and no divisor to be averaged.
    return result if batch.samples else result.map(torch.zeros_like)


def _scalars(batch: Batch) -> torch.Tensor:
    knobs = (*batch.rule.knobs, batch.rule.decay)
    values = (1.0, 0.0, float(batch.samples), divisor(batch), *knobs)
    like = batch.row_x
    # Filled on the device: a copy from the CPU would wait for it.
    scalars = (v.to(like) if isinstance(v, torch.Tensor) else like.new_full((), v) for v in values)
    return torch.stack(list(scalars))


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
    return shapes.map(lambda shape: torch.zeros(shape, dtype=dtype, device=weight.device))


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
    return Statistics(
        scalars=(len(SCALARS),),
        center=(inputs * operation.groups,),
        origin=(*layer[:2], *[1] * len(taps)) if centered else None,
        layer_first=layer if centered else None,
        layer_second=layer if scaled else None,
        mass=neuron if weighted else None,
        square=neuron if weighted else None,
        first=tuple(weight.shape) if weighted and centered else None,
        second=tuple(weight.shape) if weighted and neuron_scale else None,
    )


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
        return torch.where(share == 0, 0, share * getattr(moved, name)) + rest * getattr(new, name)

    sums = {name: getattr(new, name) for name in SUMS if getattr(new, name) is not None}
    finite = torch.stack([a.isfinite().all() for a in (new.samples, *sums.values())]).all()
    merged = each.with_scalars(
        calls=torch.ones_like(new.calls), steps=old.steps, samples=average("samples")
    )._replace(
        # About a mean as large as what has overflowed, the next batch would overflow too.
        center=torch.where(finite, each.center, old.mean),
        **{name: average(name) for name in sums},
    )
    # Without a memory what is not finite is shown, so that it has the plain gradient.
    fresh = (new.calls > 0) & (finite | (decay == 0))
    return merged.map(lambda a, b: torch.where(fresh, a, b), old)


def usable(statistics: Statistics) -> torch.Tensor:
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
        lost = _ROUNDINGS * torch.finfo(value.dtype).eps * (second + quadratic)
        return first - step * mass, torch.where(value <= lost, 0, value)

    layer = moved(statistics.layer_first, statistics.layer_second, statistics.samples)
    neuron = moved(statistics.first, statistics.second, statistics.mass)
    return statistics._replace(
        layer_first=layer[0], layer_second=layer[1], first=neuron[0], second=neuron[1]
    )


def moments(statistics: Statistics, *, centered: bool = True) -> Moments:
    """Each neuron's input moments, broadcasting against the weight.

    Args:
        statistics: of a batch, or merged.
        centered: False where the bias may not move: second moments about zero.
    """
    statistics = statistics.per_call()
    origin = (
        torch.zeros_like(statistics.samples) if statistics.origin is None else statistics.origin
    )
    layer = Sums(
        statistics.samples, statistics.samples, statistics.layer_first, statistics.layer_second
    )
    neuron = None
    # The neuron's own may be there for its mean only.
    if statistics.mass is not None and (centered or statistics.second is not None):
        neuron = Sums(statistics.mass, statistics.square, statistics.first, statistics.second)
    offset, variance = raw_moments(layer, neuron, statistics.shrinkage)
    mean = origin + offset
    if not centered:
        variance = None if variance is None else variance + mean**2
        mean, offset = torch.zeros_like(mean), offset - mean
    if variance is None:
        sigma = torch.ones_like(mean)
    else:
        sigma = damped_sigma(variance, statistics.damping, statistics.epsilon)
        if centered:
            sigma = torch.where(_constant(variance, offset, origin), 1, sigma)
    if sigma.ndim == 0:  # nothing is centered and nothing is scaled
        return Moments(statistics.center, mean, offset, sigma)
    if mean.ndim == 0:
        mean, offset = torch.zeros_like(sigma), torch.zeros_like(sigma)
    return finite_or_plain(Moments(statistics.center, mean, offset, sigma))


def _constant(variance: torch.Tensor, offset: torch.Tensor, origin: torch.Tensor) -> torch.Tensor:
    """Whether all that a neuron reads varies by no more than rounding: a single sample, say.

    Its gradient in the coordinates is rounding too. Divided by the root of epsilon, and brought to
    size 1 by Adam, it would be a step of rate / sqrt(epsilon).
    """
    rounding = _ROUNDINGS * torch.finfo(variance.dtype).eps
    rounding = rounding * (variance + offset**2) + (rounding * origin) ** 2
    constant = (variance <= rounding).flatten(1).all(1)
    return constant.reshape(-1, *[1] * (variance.ndim - 1))
