"""Tracked statistics: the sums of a batch, kept and merged from step to step. Pure.

One layer's statistics are a dict of tensors, all at least float32, all *additive*: those of two
shards, micro-batches or calls of a layer add up to those of both. So they leave the backward pass
as gradients do: the gradient with respect to a layer's statistics is the statistics of the batch.

    calls         how often the layer was called, (); all else that is no sum is times calls
    steps         merged steps so far, ()
    knobs         shrinkage, damping, epsilon, decay, [4]
    divisor       what a step is divided by (`Rule.step_scale`), ()
    center        the mean of x, [C], about which the next batch is summed
    origin        what these sums are taken about, broadcasts against the weight
    samples       how many, ()
    layer_first   sum of x - origin, layer_second: of its square (s = 1), [1, I, ...]
    mass, square  sum of s and of s^2, [O, 1, ...]
    first, second sum of s (x - origin) and s (x - origin)^2, [O, I, ...]

Only what the rule needs is there: no `first` without a bias, no `second` where nothing is scaled,
no `mass` where s = 1. Zero padding counts as samples of value 0, as everywhere.
"""

from typing import Any

import torch

from torchnorm.operations.linear import LinearOperation
from torchnorm.rule import Rule
from torchnorm.statistics.moments import (
    Moments,
    Sums,
    damped_sigma,
    finite_or_plain,
    layer_sums,
    raw_moments,
    weighted_sums,
)
from torchnorm.statistics.step_scale import divisor
from torchnorm.statistics.weighting import needs_slope, raw_weight

Statistics = dict[str, torch.Tensor]

_PER_CALL = ("knobs", "divisor", "center", "origin")
_ADDED = ("samples", "layer_first", "layer_second", "mass", "square", "first", "second")


def batch_statistics(
    operation: LinearOperation,
    x: torch.Tensor,
    weight: torch.Tensor,
    slope: torch.Tensor | None,
    g_z: torch.Tensor,
    rule: Rule,
    center: torch.Tensor,
    *,
    centered: bool,
) -> Statistics:
    """The statistics of one batch.

    Args:
        operation: the layer's linear operation.
        x: inputs, channels where PyTorch has them.
        weight: gives the shape only.
        slope: phi'(z) on the rows that the statistics use, or None.
        g_z: gradient at z on these rows.
        rule: see `Rule`.
        center: [C], about which the sums are taken.
        centered: False where there is no bias to absorb a mean.
    """
    dtype, outputs = center.dtype, weight.shape[0]
    x = operation.first_rows(x, rule.statistics_rows).to(dtype)
    g_z = g_z.to(dtype)
    scaled = rule.scale != "none"
    result = {
        "calls": center.new_ones(()),
        "steps": center.new_zeros(()),
        "knobs": _knobs(rule, center),
        "divisor": divisor(rule.step_scale, operation, x, weight, g_z, rule.damping, rule.epsilon),
        "center": operation.bias_grad(x) / max(operation.samples(x), 1),
        "samples": center.new_full((), operation.samples(g_z)),
    }
    shift = torch.zeros_like(center)
    if centered:
        shift = center
        x = x - operation.over_samples(shift)
        result["origin"] = operation.per_tap(shift, weight)
    shift = operation.per_tap(shift, weight)
    layer = layer_sums(operation, x, weight, g_z, first=centered, second=scaled)
    layer = Sums._make(v if v is None else operation.per_output(v, outputs) for v in layer)
    result |= _named("layer_", _with_padding(layer, shift))
    s = raw_weight(rule.weighting, slope, g_z)
    own_scale = rule.scale == "neuron"
    if s is not None and (centered or own_scale):
        neuron = weighted_sums(operation, x, weight, s, first=centered, second=own_scale)
        result |= {"mass": neuron.mass, "square": neuron.square}
        result |= _named("", _with_padding(neuron, shift))
    if operation.samples(g_z) == 0:
        # No call: an empty share of a batch has no mean and no divisor to be averaged.
        return {name: torch.zeros_like(value) for name, value in result.items()}
    return result


def _knobs(rule: Rule, like: torch.Tensor) -> torch.Tensor:
    knobs = (*rule.knobs, rule.decay)
    if any(isinstance(knob, torch.Tensor) for knob in knobs):
        return torch.stack([torch.as_tensor(k, dtype=like.dtype).to(like.device) for k in knobs])
    return like.new_tensor(knobs)


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
    dtype = torch.promote_types(weight.dtype, torch.float32)
    shapes = shapes_of(operation, weight, rule, gated=gated, centered=centered)
    # Not weight.new_zeros: the statistics of a sharded weight are whole.
    how: Any = {"dtype": dtype, "device": weight.device}
    return {name: torch.zeros(shape, **how) for name, shape in shapes.items()}


def shapes_of(
    operation: LinearOperation, weight: torch.Tensor, rule: Rule, *, gated: bool, centered: bool
) -> dict[str, tuple[int, ...]]:
    """The shapes of `empty`."""
    outputs, inputs, *taps = weight.shape
    layer = (1 if operation.groups == 1 else outputs, inputs, *taps)
    neuron = (outputs, *[1] * (weight.ndim - 1))
    shapes: dict[str, tuple[int, ...]] = {"calls": (), "steps": (), "knobs": (4,), "divisor": ()}
    shapes |= {"center": (inputs * operation.groups,), "samples": ()}
    scaled, own_scale = rule.scale != "none", rule.scale == "neuron"
    if centered:
        shapes["origin"] = (layer[0], inputs, *[1] * len(taps))
        shapes["layer_first"] = layer
    if scaled:
        shapes["layer_second"] = layer
    weighted = rule.weighting == "error" or (needs_slope(rule.weighting) and gated)
    if weighted and (centered or own_scale):
        shapes |= {"mass": neuron, "square": neuron}
        shapes |= {"first": tuple(weight.shape)} if centered else {}
        shapes |= {"second": tuple(weight.shape)} if own_scale else {}
    return shapes


def _with_padding(sums: Sums, shift: torch.Tensor) -> Sums:
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


def center_of(statistics: Statistics) -> torch.Tensor:
    """The mean of x in the batches so far, 0 before the first."""
    return statistics["center"] / statistics["calls"].clamp_min(1)


def merge(old: Statistics, new: Statistics) -> Statistics:
    """The old statistics and those of a batch, ``decay`` being the share of the old.

    Chan's merge of (mass, mean, M2): both as sums about the same origin, weighted by `decay` and
    `1 - decay`. Before the first step the old sums are 0, so the moments, which are ratios of sums,
    are those of the first batch exactly: no bias to correct. A batch without any call (see
    `Rule.statistics_every`) or whose sums are not finite leaves the old ones as they are.
    """
    calls = new["calls"].clamp_min(1)
    each = {name: new[name] / calls for name in _PER_CALL if name in new}
    decay = each["knobs"][3]
    finite = torch.stack([new[name].isfinite().all() for name in _ADDED if name in new]).all()
    # About a mean as large as what has overflowed, the next batch would overflow too.
    each["center"] = torch.where(finite, each["center"], center_of(old))
    # Without a memory what is not finite is shown, so that it has the plain gradient.
    fresh = (new["calls"] > 0) & (finite | (decay == 0))
    moved = _about(old, each["origin"]) if "origin" in new else old
    merged = dict(new) | each | {"calls": torch.ones_like(calls)}
    for name in _ADDED:
        if name in new:
            share, rest = (decay**2, (1 - decay) ** 2) if name == "square" else (decay, 1 - decay)
            merged[name] = torch.where(share == 0, 0, share * moved[name]) + rest * new[name]
    merged = {name: torch.where(fresh, merged[name], old[name]) for name in merged}
    return merged | {"steps": old["steps"] + 1}


def usable(statistics: Statistics) -> torch.Tensor:
    """Whether they were ever updated, and by more than one sample that is its own mean."""
    calls = statistics["calls"].clamp_min(1)
    fresh = (statistics["knobs"][3] / calls == 0) & (statistics["samples"] == 1)
    return (statistics["calls"] > 0) & ~(fresh & ("origin" in statistics))


def _about(statistics: Statistics, origin: torch.Tensor) -> Statistics:
    """The same sums about another origin."""
    step = origin - statistics["origin"] / statistics["calls"].clamp_min(1)
    moved = dict(statistics)
    for prefix, mass in (("layer_", "samples"), ("", "mass")):
        first, second = f"{prefix}first", f"{prefix}second"
        if first in moved:
            if second in moved:
                quadratic = step**2 * statistics[mass]
                value = statistics[second] - 2 * step * statistics[first] + quadratic
                lost = _ROUNDINGS * torch.finfo(value.dtype).eps * (statistics[second] + quadratic)
                moved[second] = torch.where(value <= lost, 0, value)
            moved[first] = statistics[first] - step * statistics[mass]
    return moved


def moments(statistics: Statistics, *, centered: bool = True) -> Moments:
    """Each neuron's input moments, broadcasting against the weight.

    Args:
        statistics: of a batch, or merged.
        centered: False where the bias may not move: second moments about zero.
    """
    calls = statistics["calls"].clamp_min(1)
    shrinkage, damping, epsilon, _ = statistics["knobs"] / calls
    samples = statistics["samples"]
    origin = statistics.get("origin", torch.zeros_like(samples)) / calls
    layer = _sums(statistics, "layer_", samples, samples)
    neuron = None
    # The neuron's own may be there for its mean only.
    if "mass" in statistics and (centered or "second" in statistics):
        neuron = _sums(statistics, "", statistics["mass"], statistics["square"])
    offset, variance = raw_moments(origin, layer, neuron, shrinkage)
    mean = origin + offset
    if not centered:
        variance = None if variance is None else variance + mean**2
        mean, offset = torch.zeros_like(mean), offset - mean
    if variance is None:
        sigma = torch.ones_like(mean)
    else:
        sigma = damped_sigma(variance, damping, epsilon)
        if centered:
            sigma = torch.where(_constant(variance, offset, origin), 1, sigma)
    if sigma.ndim == 0:  # nothing is centered and nothing is scaled
        return Moments(statistics["center"] / calls, mean, offset, sigma)
    if mean.ndim == 0:
        mean, offset = torch.zeros_like(sigma), torch.zeros_like(sigma)
    return finite_or_plain(Moments(statistics["center"] / calls, mean, offset, sigma))


def _constant(variance: torch.Tensor, offset: torch.Tensor, origin: torch.Tensor) -> torch.Tensor:
    """Whether all that a neuron reads varies by no more than rounding: a single sample, say.

    Its gradient in the coordinates is rounding too. Divided by the root of epsilon, and brought to
    size 1 by Adam, it would be a step of rate / sqrt(epsilon).
    """
    rounding = _ROUNDINGS * torch.finfo(variance.dtype).eps
    rounding = rounding * (variance + offset**2) + (rounding * origin) ** 2
    constant = (variance <= rounding).flatten(1).all(1)
    return constant.reshape(-1, *[1] * (variance.ndim - 1))


#: How many of them a difference of two sums may have lost.
_ROUNDINGS = 16


def _sums(statistics: Statistics, prefix: str, mass: Any, square: Any) -> Sums:
    first, second = statistics.get(f"{prefix}first"), statistics.get(f"{prefix}second")
    return Sums(mass, square, mass, first, second)
