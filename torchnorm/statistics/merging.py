"""Tracked statistics from step to step: merged, and the coordinates that they make. Pure."""

from collections.abc import Sequence
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
    ROWS,
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
    usable (see there), or whose sums are not finite leaves the old ones as they are (then their
    `age` is 1, else 0), and the next step takes them again.

    Args:
        old: those so far.
        new: those of a batch.
        remembers: see `Rule.remembers`.
        settles: whether the merged ones are coordinates (see `settled`).
        smoothing: see `Rule`; 0 while they are taken in every step.
    """
    is_packed, old, new = old.is_packed, old.unpacked(), new.unpacked().counted()
    if remembers or not settles or new.mass is None:
        merged, finite = new, _all_finite(new, SUMS)
        if remembers:
            merged = _averaged(old, new, SUMS, new.decay)
        elif smoothing:
            merged = _smoothed(old, new, _share(old, smoothing))
    else:
        merged, finite = settled(new, old, smoothing, is_packed=is_packed)
    fresh, center, counted = usable(new), new.center, {"skipped": old.skipped}
    if not known_to_be_all(fresh & finite):
        # About a mean as large as what has overflowed, the next batch would overflow too.
        center = torch.where((new.calls > 0) & finite, center, old.center)
        # Without a memory what is not finite is shown, so that it has the plain gradient.
        if remembers:
            fresh = fresh & (finite | (new.decay == 0))
        elif smoothing:
            fresh = fresh & (finite | (old.calls == 0))
        merged = merged.map(lambda a, b: torch.where(fresh, a, b), old)
        counted = {"skipped": old.skipped + (merged.calls == 0), "age": ~fresh}
    merged = merged.with_scalars(**counted)._replace(center=center)
    return merged.packed() if is_packed else merged


def _all_finite(statistics: Statistics, names: Sequence[str]) -> torch.Tensor:
    """Whether all sums are, of these names."""
    each = (getattr(statistics, name) for name in ("samples", *names))
    values = [value for value in each if value is not None and value.numel()]
    # One number tells of all: NaN is the least and the most, and the largest magnitude.
    if values[0].device.type == "cpu":  # where norms are slow
        ends = [end for value in values for end in value.aminmax()]
    else:
        ends = foreach._foreach_norm(values, torch.inf)
    return torch.stack(list(ends)).abs().amax() < torch.inf


def _share(old: Statistics, smoothing: float) -> torch.Tensor:
    """Of the old, where statistics are smoothed."""
    return smoothing * (old.calls > 0).to(old.scalars.dtype)


def _smoothed(old: Statistics, new: Statistics, share: Any) -> Statistics:
    """The new ones, with what is summed over the layer between the old and these."""
    alone = dict.fromkeys((*ROWS, "mass", "first", "second"))
    return _averaged(old._replace(**alone), new, LAYER, share)


def _unpacked(statistics: Statistics) -> Statistics:
    """Settled ones, of which the means are the neurons' own, and not distances (see `settled`)."""
    found = statistics.unpacked()
    if not statistics.is_packed or found.first is None:
        return found
    return found._replace(first=_layer_mean(found) + found.first)


def _layer_mean(statistics: Statistics) -> torch.Tensor:
    """The layer's own, from which the means of its neurons are not far; 0 where it overflows."""
    samples = torch.where(statistics.samples > 0, statistics.samples, 1)
    mean = statistics.origin + statistics.layer_first / samples
    return torch.where(mean.abs() < torch.inf, mean, 0)


def _variance(statistics: Statistics) -> Any:
    """What of sigma^2 is variance; of settled ones."""
    scale = statistics.second
    return zero_unless(scale, (scale**-2 - statistics.mass).clamp_min(0))


def _averaged(old: Statistics, new: Statistics, names: Sequence[str], decay: Any) -> Statistics:
    """The averages of the sums of these names, `decay` being the share of the old."""
    moved, forgets = _about(old, new.origin), decay == 0

    def average(name: str) -> Any:
        a, b = getattr(moved, name), getattr(new, name)
        squared = name in ("square", "square_large")
        value = decay**2 * a + (1 - decay) ** 2 * b if squared else torch.lerp(b, a, decay)
        return torch.where(forgets, b, value)

    sums = {name: average(name) for name in names if getattr(new, name) is not None}
    return new.with_scalars(samples=average("samples"))._replace(**sums)


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
        shift = step * mass
        both = torch.addcmul(second, step, shift)
        value = torch.addcmul(both, step, first, value=-2)
        lost = ROUNDINGS * torch.finfo(value.dtype).eps
        return first - shift, zero_unless(torch.sub(value, both, alpha=lost), value)

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
    sums = statistics.unpacked().counted()
    found = finite_or_plain(of_sums(sums, centered=centered))
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
    statistics = _unpacked(statistics)
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


def settled(
    new: Statistics, old: Statistics, smoothing: float, *, is_packed: bool = False
) -> tuple[Statistics, torch.Tensor]:
    """(Those of one batch, with the coordinates in the place of the sums; whether all are finite).

    Sums to which no later batch is added are not needed: `first` becomes the mean, `second` the
    scale 1 / sigma, negative where the input does not vary, and `mass` what of sigma^2 is not
    variance. For a neuron whose bias may not move sigma^2 is zero_variance (sigma^2 - mass) +
    zero_mean mean^2 + zero_added.

    Args:
        new: of the batch, counted.
        old: those before, of which they have a share.
        smoothing: see `Rule`.
        is_packed: whether `first` is, and was, the distance of the mean from the layer's, for which
            few digits are enough however large the mean is.
    """
    if is_packed and old.first is not None:
        old = old._replace(first=_layer_mean(old) + old.first)
    found, varies, finite = _coordinates_of(new)
    small = _all_finite(new, (*LAYER, *ROWS, "mass", "square", "square_large"))
    if smoothing:
        share = _share(old, smoothing)
        new = _smoothed(old, new, share)
        before = old._asdict()
        if new.second is not None:  # a neuron of which nothing varied has no sigma to remember
            axes = tuple(range(1, old.second.ndim))
            share = torch.where(old.second.amax(axes, keepdim=True) > 0, share, 0)
            before["second"] = _variance(old)
        found = {name: torch.lerp(value, before[name], share) for name, value in found.items()}
    if new.second is not None:
        square = at_least_tiny(found["second"] + found["mass"])
        if smoothing:
            # What did not vary in this batch may in the next ones, as it did before.
            varies = torch.maximum(varies, torch.sub(found["second"], square, alpha=_FAINT))
        scale = square.rsqrt()
        # (What varies does so by more than the smallest number.)
        varies = varies - torch.finfo(scale.dtype).tiny
        found["second"] = scale if new.origin is None else torch.copysign(scale, varies)
    if is_packed and "first" in found:
        found["first"] = found["first"] - _layer_mean(new)
    return new._replace(**found).with_scalars(settled=1), small & finite.all()


def _coordinates_of(statistics: Statistics) -> tuple[dict[str, Any], Any, torch.Tensor]:
    """(What takes the place of which sum, the variance that of `second`; what varies; finite?).

    What varies is above 0. A neuron whose moments are not finite has mean 0 and sigma 1.
    """
    if statistics.second is None:  # sigma is the layer's
        found = of_sums(statistics, centered=True)
        finite = is_finite(found.mean, found.sigma)
        mean = torch.where(finite, found.mean, 0)
        return {"first": mean, "mass": statistics.mass}, None, finite
    centered = statistics.origin is not None
    raw = raw_of(statistics, centered=centered)
    varies = raw.about_mean if centered else raw.about_zero
    added, divisor = sizes_of(varies, statistics)
    # What is not finite is not in the sums of all, of which these are made.
    finite = there = (added < torch.inf) & (divisor < torch.inf)
    unit = divisor**2
    values = {"second": varies / unit, "mass": added / unit}
    if centered:
        values["first"] = raw.mean
        added, divisor = sizes_of(raw.about_zero, statistics)
        there = finite & (added < torch.inf) & (divisor < torch.inf)
        square = divisor**2
        values |= zip(ABOUT_ZERO, (unit / square, 1 / square, added / square), strict=True)
    if not known_to_be_all(there):  # else the plain gradient
        varies = torch.where(finite, varies, 1)
        for name, value in values.items():
            known = there if name in ABOUT_ZERO else finite
            values[name] = torch.where(known, value, name in ("second", "zero_added"))
    return values, varies, finite
