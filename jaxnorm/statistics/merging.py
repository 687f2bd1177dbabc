"""Tracked statistics from step to step: merged, and the coordinates that they make. Pure."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm.coordinates import Coordinates, Moments
from jaxnorm.rule import is_thinned
from jaxnorm.statistics.moments import finite_or_plain, is_finite
from jaxnorm.statistics.tracked import (
    ABOUT_ZERO,
    LAYER,
    PER_STEP,
    ROUND,
    SCALARS,
    SUMS,
    Statistics,
    of_sums,
)
from jaxnorm.statistics.weighted_sums import ROUNDINGS

#: Below this share of sigma^2 the variance of an input counts as forgotten, where it has none now.
_FAINT = 1e-4


def merge(old: Statistics, new: Statistics) -> Statistics:
    """The old statistics and those of a batch, ``decay`` being the share of the old.

    Chan's merge of (mass, mean, M2): both as sums about the same origin, weighted by `decay` and
    `1 - decay`. Before the first step the old sums are 0, so the moments, which are ratios of sums,
    are those of the first batch exactly: no bias to correct. A batch without any call, that is not
    usable (see there), or whose sums are not finite leaves the old ones as they are.
    """
    new = new.counted()
    sums = {name: getattr(new, name) for name in SUMS if getattr(new, name) is not None}
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(a)) for a in (new.samples, *sums.values())]))
    # Without a memory what is not finite is shown, so that it has the plain gradient.
    fresh, merged = usable(new), new
    if new.remembers:
        old = old.counted()
        merged = _averaged(old, new, sums, new.decay)
        fresh = fresh & (finite | (new.decay == 0))
    elif new.settles:
        merged = settled(new)
    if new.smoothing and new.interval > 1 and not new.remembers:
        merged = _smoothed(old, new, merged)
        fresh = fresh & (finite | (old.calls == 0))
    merged = jax.tree.map(lambda a, b: jnp.where(fresh, a, b), merged, old)
    # About a mean as large as what has overflowed, the next batch would overflow too.
    called = new.calls > 0
    center = jnp.where(called & finite, new.center, old.center)
    return _stepped(merged.replace(center=center), old, jnp.where(called, 1, old.age + 1))


def unchanged(old: Statistics) -> Statistics:
    """The old statistics after a step in which none were taken: one step older."""
    return _stepped(old, old, old.age + 1)


def _variance(statistics: Statistics) -> Any:
    """What of sigma^2 is variance; of settled ones."""
    scale = statistics.second
    return jnp.where(scale > 0, jnp.maximum(scale**-2 - statistics.mass, 0), 0)


def _averaged(old: Statistics, new: Statistics, sums: dict[str, Any], decay: Any) -> Statistics:
    """The averages of some sums, `decay` being the share of the old."""
    moved = _about(old, new.origin)

    def average(name: str) -> Any:
        share, rest = decay, 1 - decay
        if name in ("square", "square_large"):
            share, rest = share**2, rest**2
        return jnp.where(share == 0, 0, share * getattr(moved, name)) + rest * getattr(new, name)

    return new.with_scalars(samples=average("samples")).replace(**{n: average(n) for n in sums})


def _smoothed(old: Statistics, new: Statistics, merged: Statistics) -> Statistics:
    """The merged ones between the old, if there are any, and what the new have become."""
    share = jnp.where(is_thinned(old.steps, old.interval) & (old.calls > 0), new.smoothing, 0)
    share = share.astype(new.scalars.dtype)
    layers = {name: getattr(new, name) for name in LAYER if getattr(new, name) is not None}
    alone = old.replace(mass=None, first=None, second=None)
    averages = _averaged(alone, new, layers, share)
    fields = {name: getattr(averages, name) for name in layers}

    def between(a: Any, b: Any) -> Any:
        return share * a + (1 - share) * b

    if new.settles:
        if merged.second is not None:  # a neuron of which nothing varied has no sigma to remember
            axes = tuple(range(merged.second.ndim - 1))
            share = jnp.where(jnp.any(old.second > 0, axis=axes, keepdims=True), share, 0)
        for name in ("first", "mass", *ABOUT_ZERO):
            if getattr(new, name) is not None:
                fields[name] = between(getattr(old, name), getattr(merged, name))
        if merged.second is not None:
            variance = between(_variance(old), _variance(merged))
            square = variance + fields["mass"]
            # What did not vary in this batch may in the next ones, as it did before.
            varies = (merged.second > 0) | (variance > _FAINT * square)
            square = jnp.where(square < jnp.finfo(square.dtype).tiny, 1, square)
            fields["second"] = jnp.where(varies, 1, -1) * lax.rsqrt(square)
    return merged.with_scalars(samples=averages.samples).replace(**fields)


def _stepped(merged: Statistics, old: Statistics, age: Any) -> Statistics:
    """With one step more than the old, and the skipped one if that is what it will be."""
    steps, rounds, skipped = (old.scalars[SCALARS.index(name)] for name in PER_STEP[:3])
    full = steps + 1 >= ROUND
    return merged.with_scalars(
        steps=jnp.where(full, 0, steps + 1),
        rounds=rounds + full.astype(rounds.dtype),
        skipped=skipped + (merged.calls == 0).astype(skipped.dtype),
        age=age,
    )


def usable(statistics: Statistics) -> jax.Array:
    """Whether there are samples of one call, more than one that would be its own mean.

    And each input must have been summed about one center. (The parts of a first batch choose for
    themselves: their own means, where an input is far from 0. The next batch knows one of all.)
    """
    if statistics.at_mean is None:
        return statistics.calls > 0
    alone = (statistics.decay == 0) & (statistics.samples < 1.5)
    torn = jnp.any(abs(statistics.at_mean - 0.5) < 0.499)
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
        lost = ROUNDINGS * jnp.finfo(value.dtype).eps * (second + quadratic)
        return first - step * mass, jnp.where(value <= lost, 0, value)

    name = "spread" if statistics.layer_second is None else "layer_second"
    layer = moved(statistics.layer_first, getattr(statistics, name), statistics.samples)
    rows = moved(statistics.rows_first, statistics.rows_second, statistics.rows_mass)
    neuron = moved(statistics.first, statistics.second, statistics.mass)
    sums = {"layer_first": layer[0], name: layer[1], "first": neuron[0], "second": neuron[1]}
    sums |= {"rows_first": rows[0], "rows_second": rows[1]}
    return statistics.replace(**sums)


def moments(statistics: Statistics, *, centered: bool = True) -> Moments:
    """Each neuron's input moments, broadcasting against the kernel.

    Args:
        statistics: of a batch, or merged.
        centered: False where the bias may not move: second moments about zero.
    """
    found = finite_or_plain(of_sums(statistics.counted(), centered=centered).moments)
    if statistics.mass is None:
        return found
    at = coordinates(statistics.replace(remembers=False, interval=2), None if centered else True)
    origin = 0 if statistics.origin is None else statistics.origin
    merged = Moments(found.center, at.mean, at.mean - origin, 1 / at.scale, at.varies)
    is_settled = statistics.is_settled > 0
    return jax.tree.map(lambda a, b: jnp.where(is_settled, a, b), merged, found)


def coordinates(statistics: Statistics, fixed: Any = None) -> Coordinates:
    """The coordinates that merged statistics make.

    Args:
        statistics: merged.
        fixed: which neurons have a bias that may not move, and second moments about zero,
            [1, ..., O]; None for none, True for all.
    """
    centered = statistics.origin is not None
    if not statistics.settles:
        found, about_zero = (
            finite_or_plain(of_sums(statistics, centered=each).moments).coordinates
            for each in (centered, False)
        )
        return found if fixed is None or not centered else _where(fixed, about_zero, found)
    mean, scale = statistics.first, statistics.second
    if not centered:
        return Coordinates(jnp.zeros_like(scale), abs(scale), scale > 0)
    if scale is None:  # it is the layer's, of a few numbers
        layer = coordinates(statistics.replace(mass=None, first=None), fixed)
        found = layer._replace(mean=mean)
        return found if fixed is None else _where(fixed, layer, found)
    found = Coordinates(mean, abs(scale), scale > 0)
    if fixed is None:
        return found
    # Seldom: it is not worth another array of this size to have it ready.
    variance, moved, added = (getattr(statistics, name) for name in ABOUT_ZERO)
    square = variance * _variance(statistics) + moved * mean**2 + added
    about_zero = jnp.where(square < jnp.finfo(square.dtype).tiny, 1, lax.rsqrt(square))
    return _where(fixed, Coordinates(jnp.zeros_like(mean), about_zero, scale > 0), found)


def _where(fixed: Any, about_zero: Coordinates, found: Coordinates) -> Coordinates:
    """The coordinates, of some neurons about zero."""
    return Coordinates(
        jnp.where(fixed, about_zero.mean, found.mean),
        jnp.where(fixed, about_zero.scale, found.scale),
        found.varies | fixed,
    )


def settled(statistics: Statistics) -> Statistics:
    """The statistics of one batch with the coordinates in the place of the neurons' sums.

    Sums to which no later batch is added are not needed: `first` becomes the mean, `second` the
    scale 1 / sigma, negative where the input does not vary, and `mass` what of sigma^2 is not
    variance. For a neuron whose bias may not move sigma^2 is zero_variance (sigma^2 - mass) +
    zero_mean mean^2 + zero_added.
    """
    centered, shape = statistics.origin is not None, jnp.shape(statistics.mass)
    found, added, divisor = of_sums(statistics, centered=centered)
    finite = is_finite(found)
    plain = finite_or_plain(found, finite)
    mean, scale, varies = plain.mean, 1 / plain.sigma, plain.varies
    new: dict[str, Any] = {}
    if statistics.first is not None:
        new["first"] = jnp.broadcast_to(mean, statistics.first.shape)
    if statistics.second is not None:
        new["second"] = jnp.where(varies, scale, -scale)
        new["mass"] = jnp.broadcast_to(jnp.where(finite, added / divisor**2, 0), shape)
    if statistics.zero_mean is not None:
        found, added, other = of_sums(statistics, centered=False)
        values = ((divisor / other) ** 2, 1 / other**2, added / other**2)
        finite = finite & is_finite(found)
        for name, value, otherwise in zip(ABOUT_ZERO, values, (0, 0, 1), strict=True):
            new[name] = jnp.broadcast_to(jnp.where(finite, value, otherwise), shape)
    return statistics.replace(**new).with_scalars(settled=jnp.ones_like(statistics.samples))
