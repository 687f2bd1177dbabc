"""Tracked statistics from step to step: merged, and the coordinates that they make. Pure."""

from collections.abc import Sequence
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
    ROWS,
    SCALARS,
    SUMS,
    Statistics,
    of_sums,
    unmasked,
)
from jaxnorm.statistics.weighted_sums import ROUNDINGS

#: Below this share of sigma^2 the variance of an input counts as forgotten, where it has none now.
_FAINT = 1e-4


def merge(old: Statistics, new: Statistics) -> Statistics:
    """The old statistics and those of a batch, ``decay`` being the share of the old.

    Chan's merge of (mass, mean, M2): both as sums about the same origin, weighted by `decay` and
    `1 - decay`. Before the first step the old sums are 0, so the moments, which are ratios of sums,
    are those of the first batch exactly: no bias to correct. A batch without any call, that is not
    usable (see there), or whose sums are not finite leaves the old ones as they are, and the next
    step takes them again.
    """
    before, old, new = old, old.unpacked(), new.unpacked().counted()
    fresh = usable(new)
    if new.settles:
        merged, finite = settled(new, old, is_packed=before.is_packed)
        if new.smoothing:
            fresh = fresh & (finite | (old.calls == 0))
    else:
        merged, finite = new, _is_finite(new)
        if new.remembers:
            # Without a memory what is not finite is shown, so that it has the plain gradient.
            fresh = fresh & (finite | (new.decay == 0))
            merged = _averaged(old.counted(), new, new.decay)
        elif new.smoothing and new.interval > 1:
            fresh = fresh & (finite | (old.calls == 0))
            merged = _smoothed(old, new, _share(old, new))
    merged = jax.tree.map(lambda a, b: jnp.where(fresh, a, b), merged, old)
    # About a mean as large as what has overflowed, the next batch would overflow too.
    called = new.calls > 0
    center = jnp.where(called & finite, new.center, old.center)
    if before.is_packed:
        merged = jax.tree.map(lambda a, b: a.astype(b.dtype), merged.packed(), before)
    return _stepped(merged.replace(center=center), old, jnp.where(fresh, 1, old.age + 1))


def _is_finite(statistics: Statistics, names: Sequence[str] = SUMS) -> jax.Array:
    """Whether all sums are, of these names."""
    sums = (statistics.samples, *(getattr(statistics, name) for name in names))
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(a)) for a in sums if a is not None]))


def unchanged(old: Statistics) -> Statistics:
    """The old statistics after a step in which none were taken: one step older."""
    return _stepped(old, old, old.age + 1)


def _unpacked(statistics: Statistics) -> Statistics:
    """Settled ones, of which the means are the neurons' own, and not distances (see `settled`)."""
    found = statistics.unpacked()
    if not statistics.is_packed or found.first is None:
        return found
    return found.replace(first=unmasked(found, _layer_mean(found) + found.first))


def _layer_mean(statistics: Statistics) -> jax.Array:
    """The layer's own, from which the means of its neurons are not far; 0 where it overflows."""
    samples = jnp.where(statistics.samples > 0, statistics.samples, 1)
    mean = statistics.origin + statistics.layer_first / samples
    return jnp.where(jnp.isfinite(mean), mean, 0)


def _variance(statistics: Statistics) -> Any:
    """What of sigma^2 is variance; of settled ones."""
    scale = statistics.second
    return jnp.where(scale > 0, jnp.maximum(scale**-2 - statistics.mass, 0), 0)


def _averaged(
    old: Statistics, new: Statistics, decay: Any, names: Sequence[str] = SUMS
) -> Statistics:
    """The averages of the sums of these names, `decay` being the share of the old."""
    moved = _about(old, new.origin)

    def average(name: str) -> Any:
        share, rest = decay, 1 - decay
        if name in ("square", "square_large"):
            share, rest = share**2, rest**2
        return jnp.where(share == 0, 0, share * getattr(moved, name)) + rest * getattr(new, name)

    sums = {name: average(name) for name in names if getattr(new, name) is not None}
    return new.with_scalars(samples=average("samples")).replace(**sums)


def _share(old: Statistics, new: Statistics) -> jax.Array:
    """Of the old, where statistics are smoothed."""
    thinned = is_thinned(old.steps, old.interval) & (old.calls > 0)
    return jnp.where(thinned, new.smoothing, 0).astype(new.scalars.dtype)


def _smoothed(old: Statistics, new: Statistics, share: Any) -> Statistics:
    """The new ones, with what is summed over the layer between the old and these."""
    alone = old.replace(mass=None, first=None, second=None)
    return _averaged(alone, new, share, LAYER)


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
    sums = statistics.unpacked().counted()
    found = finite_or_plain(of_sums(sums, centered=centered).moments)
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
    statistics = _unpacked(statistics)
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
    about_zero = Coordinates(jnp.zeros_like(mean), scale_about_zero(statistics, found), scale > 0)
    return _where(fixed, about_zero, found)


def scale_about_zero(statistics: Statistics, at: Coordinates, *, relative: bool = False) -> Any:
    """1 / sigma about zero, where the coordinates are `at`; or how many times as large it is."""
    statistics = _unpacked(statistics)  # here: what is handed to a branch is there whole
    if not statistics.settles or statistics.origin is None or statistics.second is None:
        scale = coordinates(statistics, True).scale
        return scale / at.scale if relative else scale
    # It is not worth another array of this size to have it ready: sigma^2 over the other sigma^2.
    variance, moved, added = (getattr(statistics, name) for name in ABOUT_ZERO)
    square = statistics.second**2
    share = jnp.where(statistics.second > 0, jnp.maximum(1 - statistics.mass * square, 0), 0)
    share = variance * share + (moved * statistics.first**2 + added) * square
    ratio = jnp.where(share < jnp.finfo(share.dtype).tiny, 1, lax.rsqrt(share))
    return ratio if relative else at.scale * ratio


def _where(fixed: Any, about_zero: Coordinates, found: Coordinates) -> Coordinates:
    """The coordinates, of some neurons about zero."""
    return Coordinates(
        jnp.where(fixed, about_zero.mean, found.mean),
        jnp.where(fixed, about_zero.scale, found.scale),
        found.varies | fixed,
    )


def settled(
    new: Statistics, old: Statistics, *, is_packed: bool = False
) -> tuple[Statistics, jax.Array]:
    """(Those of one batch, with the coordinates in the place of the sums; whether all are finite).

    Sums to which no later batch is added are not needed: `first` becomes the mean, `second` the
    scale 1 / sigma, negative where the input does not vary, and `mass` what of sigma^2 is not
    variance. For a neuron whose bias may not move sigma^2 is zero_variance (sigma^2 - mass) +
    zero_mean mean^2 + zero_added.

    Args:
        new: of the batch, counted.
        old: those before, of which they have a share (see `Rule.smoothing`).
        is_packed: whether `first` is, and was, the distance of the mean from the layer's, for which
            few digits are enough however large the mean is.
    """
    if is_packed and old.first is not None:
        old = old.replace(first=_layer_mean(old) + old.first)
    share = _share(old, new) if new.smoothing else None
    found, finite = _coordinates_of(new)
    varies = found.pop("varies")
    if share is not None:
        new = _smoothed(old, new, share)
        if new.second is not None:  # a neuron of which nothing varied has no sigma to remember
            axes = tuple(range(new.second.ndim - 1))
            share = jnp.where(jnp.any(old.second > 0, axis=axes, keepdims=True), share, 0)
            before = {name: getattr(old, name) for name in found} | {"second": _variance(old)}
        else:
            before = {name: getattr(old, name) for name in found}
        found = {name: share * before[name] + (1 - share) * found[name] for name in found}
    if new.second is not None:
        square = found["second"] + found["mass"]
        if share is not None:
            # What did not vary in this batch may in the next ones, as it did before.
            varies = varies | (found["second"] > _FAINT * square)
        square = jnp.where(square < jnp.finfo(square.dtype).tiny, 1, square)
        found["second"] = jnp.where(varies, 1, -1) * lax.rsqrt(square)
    if is_packed and "first" in found:
        found["first"] = found["first"] - _layer_mean(new)
    new = new.replace(**found)
    return new.with_scalars(settled=jnp.ones_like(new.samples)), finite


def _coordinates_of(statistics: Statistics) -> tuple[dict[str, Any], jax.Array]:
    """(What takes the place of which sum, the variance that of `second`; whether all are finite).

    A neuron whose moments are not finite has mean 0 and sigma 1, see `finite_or_plain`.
    """
    centered, shape = statistics.origin is not None, jnp.shape(statistics.mass)
    found = of_sums(statistics, centered=centered)
    small = _is_finite(statistics, (*LAYER, *ROWS, "mass", "square", "square_large"))
    if statistics.second is None:  # sigma, if there is one, is the layer's
        finite = is_finite(found.moments)
    else:  # what is not finite is not in the sum of all, of which these are made
        finite = jnp.isfinite(found.added) & jnp.isfinite(found.divisor)
    values: dict[str, Any] = {"varies": found.moments.varies | ~finite}
    if statistics.first is not None:
        mean = jnp.where(finite, found.moments.mean, 0)
        values["first"] = jnp.broadcast_to(mean, statistics.first.shape)
    if statistics.second is None:
        values["mass"] = statistics.mass
        return values, small & jnp.all(finite)
    assert found.variance is not None
    unit = 1 / found.divisor**2
    values["second"] = jnp.where(finite, unit * found.variance, 1)
    values["mass"] = jnp.broadcast_to(jnp.where(finite, unit * found.added, 0), shape)
    if statistics.zero_mean is not None:
        zero = of_sums(statistics, centered=False)
        unit = 1 / zero.divisor**2
        each = (unit * found.divisor**2, unit, unit * zero.added)
        there = finite & jnp.isfinite(zero.added) & jnp.isfinite(zero.divisor)
        for name, value, otherwise in zip(ABOUT_ZERO, each, (0, 0, 1), strict=True):
            values[name] = jnp.broadcast_to(jnp.where(there, value, otherwise), shape)
    return values, small & jnp.all(finite)
