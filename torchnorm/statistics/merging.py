"""Tracked statistics from step to step: merged, and the coordinates that they make. Pure."""

from typing import Any

import torch

from torchnorm.coordinates import (
    Coordinates,
    Moments,
    foreach,
    known_to_be_above,
    known_to_be_all,
    zero_unless,
)
from torchnorm.statistics.moments import at_least_tiny, finite_or_plain, is_finite
from torchnorm.statistics.tracked import (
    ABOUT_ZERO,
    LAYER,
    SUMS,
    Statistics,
    of_sums,
    raw_of,
    sizes_of,
)
from torchnorm.statistics.weighted_sums import ROUNDINGS

#: Below this share of sigma^2 the variance of an input counts as forgotten, where it has none now.
_FAINT = 1e-4


def merge(
    old: Statistics,
    new: Statistics,
    *,
    remembers: bool,
    settles: bool = False,
    smoothing: float = 0.0,
) -> Statistics:
    """The old statistics and those of a batch, ``decay`` being the share of the old.

    Chan's merge of (mass, mean, M2): both as sums about the same origin, weighted by `decay` and
    `1 - decay`. Before the first step the old sums are 0, so the moments, which are ratios of sums,
    are those of the first batch exactly: no bias to correct. A batch without any call, that is not
    usable (see there), or whose sums are not finite leaves the old ones as they are.

    Args:
        old: those so far.
        new: those of a batch.
        remembers: see `Rule.remembers`.
        settles: whether the merged ones are coordinates (see `settled`).
        smoothing: see `Rule`; 0 while they are taken in every step.
    """
    new = new.counted()
    sums = {name: getattr(new, name) for name in SUMS if getattr(new, name) is not None}
    finite = _all_finite([value for value in (new.samples, *sums.values()) if value.numel()])
    # Without a memory what is not finite is shown, so that it has the plain gradient.
    fresh, merged, variance = usable(new), new, None
    if remembers:
        merged = _averaged(old, new, sums, new.decay)
        fresh = fresh & (finite | (new.decay == 0))
    elif settles and new.mass is not None:
        merged, variance = settled(new)
    if smoothing and not remembers:
        merged = _smoothed(old, new, merged, variance, smoothing)
        fresh = fresh & (finite | (old.calls == 0))
    # About a mean as large as what has overflowed, the next batch would overflow too.
    center = torch.where((new.calls > 0) & finite, new.center, old.center)
    skipped = old.skipped
    if not known_to_be_all(fresh):
        merged = merged.map(lambda a, b: torch.where(fresh, a, b), old)
        skipped = skipped + (merged.calls == 0)
    return merged.with_scalars(skipped=skipped)._replace(center=center)


def _all_finite(values: list[torch.Tensor]) -> torch.Tensor:
    # One number tells of all: NaN is the least and the most, and the largest magnitude.
    if values[0].device.type == "cpu":  # where norms are slow
        ends = [end for value in values for end in value.aminmax()]
    else:
        ends = foreach._foreach_norm(values, torch.inf)
    return torch.stack(list(ends)).isfinite().all()


def _smoothed(
    old: Statistics, new: Statistics, merged: Statistics, variance: Any, smoothing: float
) -> Statistics:
    """The merged ones, of that variance, between the old, if there are any, and themselves."""
    share = smoothing * (old.calls > 0).to(new.scalars.dtype)
    layers = {name: getattr(new, name) for name in LAYER if getattr(new, name) is not None}
    alone = old._replace(mass=None, first=None, second=None)
    averages = _averaged(alone, new, layers, share)
    fields = {name: getattr(averages, name) for name in layers}

    def between(a: Any, b: Any) -> Any:
        return torch.lerp(b, a, share)

    if new.mass is not None:
        if merged.second is not None:  # a neuron of which nothing varied has no sigma to remember
            axes = tuple(range(1, old.second.ndim))
            varied = old.second.clamp_min(0).sum(axes, keepdim=True) > 0
            share = torch.where(varied, share, 0)
        for name in ("first", "mass", *ABOUT_ZERO):
            if getattr(new, name) is not None:
                fields[name] = between(getattr(old, name), getattr(merged, name))
        if merged.second is not None:
            variance = between(_variance(old), variance)
            square = at_least_tiny(variance + fields["mass"])
            # What did not vary in this batch may in the next ones, as it did before.
            varies = torch.maximum(merged.second, torch.sub(variance, square, alpha=_FAINT))
            fields["second"] = torch.copysign(square.rsqrt(), varies)
    return merged.with_scalars(samples=averages.samples)._replace(**fields)


def _variance(statistics: Statistics) -> Any:
    """What of sigma^2 is variance; of settled ones."""
    scale = statistics.second
    return zero_unless(scale, (scale**-2 - statistics.mass).clamp_min(0))


def _averaged(old: Statistics, new: Statistics, sums: dict[str, Any], decay: Any) -> Statistics:
    """The averages of some sums, `decay` being the share of the old."""
    moved = _about(old, new.origin)
    rest, forgets = 1 - decay, decay == 0

    def average(name: str) -> Any:
        squared = name in ("square", "square_large")
        share, other = (decay**2, rest**2) if squared else (decay, rest)
        before = torch.where(forgets, 0, share * getattr(moved, name))
        return before + other * getattr(new, name)

    return new.with_scalars(samples=average("samples"))._replace(**{n: average(n) for n in sums})


def usable(statistics: Statistics) -> torch.Tensor:
    """Whether there are samples of one call, more than one that would be its own mean.

    And each input must have been summed about one center. (The parts of a first batch choose for
    themselves: their own means, where an input is far from 0. The next batch knows one of all.)
    """
    if statistics.at_mean is None:
        return statistics.calls > 0
    alone = (statistics.decay == 0) & (statistics.samples < 1.5)
    torn = ((statistics.at_mean - 0.5).abs() < 0.499).any()
    return (statistics.calls > 0) & ~alone & ~torn


def _about(statistics: Statistics, origin: Any) -> Statistics:
    """The same sums about another origin."""
    if origin is None:
        return statistics
    step = origin - statistics.origin

    def moved(first: Any, second: Any, mass: Any) -> tuple[Any, Any]:
        if first is None or second is None:
            return None if first is None else first - step * mass, second
        quadratic = step**2 * mass
        value = second - 2 * step * first + quadratic
        lost = ROUNDINGS * torch.finfo(value.dtype).eps * (second + quadratic)
        return first - step * mass, torch.where(value <= lost, 0, value)

    name = "spread" if statistics.layer_second is None else "layer_second"
    layer = moved(statistics.layer_first, getattr(statistics, name), statistics.samples)
    rows = moved(statistics.rows_first, statistics.rows_second, statistics.rows_mass)
    neuron = moved(statistics.first, statistics.second, statistics.mass)
    sums = {"layer_first": layer[0], name: layer[1], "first": neuron[0], "second": neuron[1]}
    sums |= {"rows_first": rows[0], "rows_second": rows[1]}
    return statistics._replace(**sums)


def moments(statistics: Statistics, *, centered: bool = True) -> Moments:
    """Each neuron's input moments, broadcasting against the weight.

    Args:
        statistics: of a batch, or merged.
        centered: False where the bias may not move: second moments about zero.
    """
    found = finite_or_plain(of_sums(statistics.counted(), centered=centered))
    found = found._replace(varies=found.varies > 0)
    if statistics.mass is None:
        return found
    at = coordinates(statistics, None if centered else True, settles=True)
    varies = torch.ones_like(at.mean) if at.varies is None else at.varies
    varies = varies > 0
    origin = 0 if statistics.origin is None else statistics.origin
    merged = Moments(found.center, at.mean, at.mean - origin, 1 / at.scale, varies)
    is_settled = statistics.is_settled > 0
    return Moments(*(torch.where(is_settled, a, b) for a, b in zip(merged, found, strict=True)))


def coordinates(statistics: Statistics, fixed: Any = None, *, settles: bool) -> Coordinates:
    """The coordinates that merged statistics make.

    Args:
        statistics: merged.
        fixed: which neurons have a bias that may not move, and second moments about zero,
            [O, 1, ...]; None for none, True for all.
        settles: whether they are coordinates where a neuron has sums of its own (see `settled`).
    """
    centered = statistics.origin is not None
    if not settles or statistics.mass is None:
        found = finite_or_plain(of_sums(statistics, centered=centered)).coordinates
        if fixed is None or not centered:
            return found
        about_zero = finite_or_plain(of_sums(statistics, centered=False)).coordinates
        return chosen(fixed, about_zero, found)
    mean, scale = statistics.first, statistics.second
    if scale is None:  # it is the layer's, of a few numbers
        layer = coordinates(statistics._replace(mass=None, first=None), fixed, settles=False)
        found = layer._replace(mean=mean)
        return found if fixed is None else chosen(fixed, layer, found)
    varies = None if known_to_be_above(scale, 0) else scale
    found = Coordinates(mean, scale if varies is None else scale.abs(), varies)
    if not centered:
        return found._replace(mean=torch.zeros_like(scale))
    if fixed is None:
        return found
    # Seldom: it is not worth another array of this size to have it ready.
    about_zero = Coordinates(torch.zeros_like(mean), scale_about_zero(statistics), varies)
    return chosen(fixed, about_zero, found)


def scale_about_zero(statistics: Statistics) -> torch.Tensor:
    """That of neurons whose bias may not move; of settled statistics with a bias and a scale."""
    variance, moved, added = (getattr(statistics, name) for name in ABOUT_ZERO)
    mean = statistics.first
    square = torch.addcmul(added, variance, _variance(statistics))
    return at_least_tiny(square.addcmul_(moved, mean * mean)).rsqrt_()


def chosen(fixed: Any, about_zero: Coordinates, found: Coordinates) -> Coordinates:
    """The coordinates, of some neurons about zero."""
    if fixed is True:
        return about_zero._replace(mean=torch.zeros_like(found.mean), varies=None)
    return Coordinates(
        torch.where(fixed, about_zero.mean, found.mean),
        torch.where(fixed, about_zero.scale, found.scale),
        None if found.varies is None else found.varies.masked_fill(fixed, 1),
    )


def settled(statistics: Statistics) -> tuple[Statistics, Any]:
    """(The statistics of one batch with coordinates in the place of the neurons' sums, variance).

    Sums to which no later batch is added are not needed: `first` becomes the mean, `second` the
    scale 1 / sigma, negative where the input does not vary, and `mass` what of sigma^2 is not
    variance. For a neuron whose bias may not move sigma^2 is zero_variance (sigma^2 - mass) +
    zero_mean mean^2 + zero_added.
    """
    centered, zero = statistics.origin is not None, torch.zeros_like(statistics.mass)
    raw, mean, scale = raw_of(statistics, centered=centered), zero, torch.ones_like(zero)
    variance, added, divisor = zero, zero, scale
    if centered:
        mean = raw.origin + raw.offset
    if statistics.layer_second is not None:
        variance = raw.about_mean if centered else raw.about_zero
        added, divisor = sizes_of(variance, statistics)
        scale = at_least_tiny(variance + added).rsqrt() * divisor
    finite, signs = is_finite(mean, scale), variance
    share = variance / divisor**2
    if not known_to_be_all(finite):  # else the plain gradient
        mean, added = torch.where(finite, mean, 0), torch.where(finite, added, 0)
        scale, signs, share = (torch.where(finite, each, 1) for each in (scale, signs, share))
    new: dict[str, Any] = {}
    if statistics.first is not None:
        new["first"] = mean.expand(statistics.first.shape)
    if statistics.second is not None:
        # (What varies does so by more than the smallest number.)
        signs = signs - torch.finfo(scale.dtype).tiny
        new["second"] = torch.copysign(scale, signs) if centered else scale
        new["mass"] = (added / divisor**2).expand_as(zero)
    if statistics.zero_mean is not None:
        added, other = sizes_of(raw.about_zero, statistics)
        values = ((divisor / other) ** 2, 1 / other**2, added / other**2)
        finite = finite & (added < torch.inf) & (other < torch.inf)
        for name, value, otherwise in zip(ABOUT_ZERO, values, (0, 0, 1), strict=True):
            new[name] = torch.where(finite, value, otherwise).expand_as(zero)
    return statistics._replace(**new).with_scalars(settled=1), share
