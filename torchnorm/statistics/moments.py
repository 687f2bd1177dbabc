"""Sums over samples -> each neuron's input mean and scale. Pure, for any linear operation."""

import dataclasses
import math
from typing import Any

import torch

from torchnorm import checks
from torchnorm.coordinates import Moments, known_to_be_all, zero_unless
from torchnorm.operations.linear import Dense
from torchnorm.rule import Rule
from torchnorm.statistics import weighting
from torchnorm.statistics.batch import Batch, make_batch
from torchnorm.statistics.weighted_sums import ROUNDINGS, Sums, sums_about


def raw_moments(layer: Sums, neuron: Sums | None, shrinkage: Any) -> tuple[torch.Tensor, Any]:
    """(mean - center, variance) of each neuron, shrunk towards the layer's.

    About zero where the sums hold no `first`; the variance is None where they hold no `second`.
    Where the neuron's sums are of some rows only, these say how far its mean is from the layer's,
    and how many times as large its variance is.

    Args:
        layer: sums with s = 1.
        neuron: sums with the neurons' own weights; None if those are 1 as well.
        shrinkage: see `Rule`.
    """
    if layer.first is None:
        return torch.zeros_like(layer.mass), _second_about_zero(layer, neuron, shrinkage)

    layer_offset, layer_variance = _layer_moments(layer)
    if neuron is None:
        return layer_offset, layer_variance

    offset, variance = layer_offset, layer_variance
    if neuron.rows is not None:
        offset, variance = _layer_moments(neuron.rows)
    per_mass, rest = _shrink(neuron, shrinkage)
    step = per_mass * _first_about(offset, neuron)
    second = _second_about(offset, neuron)
    if second is None or variance is None:
        return layer_offset + step, layer_variance
    pooled = torch.addcmul(rest * variance, step, step, value=-1)
    pooled = torch.addcmul(pooled, per_mass, second)
    # Below 0 is rounding; but not -inf, of sums that have overflowed, which has to be seen.
    pooled = pooled.nan_to_num_(nan=torch.nan, posinf=torch.inf, neginf=torch.nan).clamp_min_(0)
    if neuron.rows is not None:
        origin = neuron.rows.center
        pooled = resolved(pooled, lost_to_rounding(offset + step, origin))
        variance = resolved(variance, lost_to_rounding(offset, origin))
        pooled = _scaled(layer_variance, pooled, variance)
    return layer_offset + step, pooled


def _layer_moments(layer: Sums) -> tuple[torch.Tensor, Any]:
    """(mean - center, variance) of sums with s = 1."""
    offset = layer.with_padding().first / layer.mass
    variance = _second_about(offset, layer)
    return offset, None if variance is None else torch.clamp_min(variance / layer.mass, 0)


def _scaled(layer: torch.Tensor, neuron: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """A moment of the layer times the neuron's share of it on some rows, where those have any."""
    # (The second is the layer's, where the neuron's is finite: what is not has to be seen.)
    share = neuron / torch.where(rows > 0, rows, 1)
    return torch.where(rows > 0, layer * share, layer + 0 * neuron)


def _second_about_zero(layer: Sums, neuron: Sums | None, shrinkage: Any) -> Any:
    """The second moment about zero, for layers without a bias; None where none is taken."""
    if neuron is None or neuron.second is None:
        return None if layer.second is None else layer.second / layer.mass
    per_mass, rest = _shrink(neuron, shrinkage)
    rows = layer if neuron.rows is None else neuron.rows
    of_rows = rows.second / rows.mass
    pooled = per_mass * neuron.second + rest * of_rows
    return pooled if rows is layer else _scaled(layer.second / layer.mass, pooled, of_rows)


def _first_about(offset: torch.Tensor, sums: Sums) -> Any:
    """Sum of s (x - mean), the mean being center + offset."""
    if sums.padding is None:
        return torch.addcmul(sums.first, offset, sums.mass, value=-1)
    real = sums.mass - sums.padding
    return sums.first - offset * real - (sums.center + offset) * sums.padding


def _second_about(offset: torch.Tensor, sums: Sums) -> Any:
    """Sum of s (x - mean)^2, the mean being center + offset."""
    if sums.second is None:
        return None
    about = torch.addcmul(sums.second, offset, sums.first, value=-2)
    if sums.padding is None:
        return torch.addcmul(about, offset**2, sums.mass)
    # Apart: where most is padding, center and offset almost cancel.
    real = sums.mass - sums.padding
    about = about + offset**2 * real
    return about + (sums.center + offset) ** 2 * sums.padding


def _shrink(neuron: Sums, shrinkage: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """((1 - lambda) / m, lambda), lambda = kappa / (n_eff + kappa), n_eff = m^2 / sum s^2."""
    # Not m^2: a small weight's would underflow.
    none = neuron.mass == 0
    mass = neuron.mass.masked_fill(none, 1)
    per_mass = 1 / (mass + shrinkage * (neuron.square / mass))
    per_mass = per_mass.masked_fill(none, 0)
    return per_mass, 1 - per_mass * neuron.mass


def added_to(variance: torch.Tensor, damping: Any, epsilon: Any) -> torch.Tensor:
    """What is added to v: damping * mean(v) + epsilon, over all that feeds one neuron."""
    axes = tuple(range(1, variance.ndim))
    return damping * variance.mean(axes, keepdim=True) + epsilon


def damped_sigma(variance: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
    """The root of v + added (see `added_to`)."""
    return at_least_tiny(variance + added).sqrt()


def at_least_tiny(square: torch.Tensor) -> torch.Tensor:
    """A square; 1 where it is 0 or next to it.

    Some hardware has no numbers below the smallest normal one, and some has. (A comparison and a
    `where` of this size would take several times as long, here and in `resolved`.)
    """
    return torch.threshold(square, torch.finfo(square.dtype).tiny, 1)


def size_of(variance: torch.Tensor, added: torch.Tensor, power: Any) -> torch.Tensor:
    """By what sigma is divided, so that a neuron's step keeps the size of the plain one.

        r^power,   r^2 = mean_i(variance + added) over the inputs that vary

    What a step of SGD does to z by way of an input's deviations is, plainly, as large as their
    variance; in coordinates with sigma absolute it is as large as 1 for each input, and relative to
    r as large as r^2, the mean of those variances: as much as before, in another direction. (Of
    Adam it is r instead of 1, where the plain one has the deviations.)

    Each neuron for itself: a layer that is split, or sharded, by its neurons takes the same steps.

    Args:
        variance: of each neuron's inputs. Those where it is 0 make no step, and do not change that
            of the rest: an input that is always 0 could as well not be there.
        added: see `added_to`.
        power: 1; with 0 sigma stays as it is.
    """
    axes = tuple(range(1, added.ndim))
    count = variance.sign().sum(axes, keepdim=True)
    total = variance.sum(axes, keepdim=True) + count * added
    root = (total / count.clamp_min(1)).sqrt()
    return torch.threshold(root, 0, 1) ** power


def resolved(variance: torch.Tensor, lost: torch.Tensor) -> torch.Tensor:
    """The variance; 0 where what a neuron reads varies by no more than rounding.

    What does not vary has no gradient in the coordinates: that would be rounding, which sigma would
    blow up and Adam bring to size 1. (In single precision a few roundings are all that some inputs
    have.)
    """
    number = torch.finfo(variance.dtype)
    return zero_unless(variance - lost, variance, above=number.tiny)


def lost_to_rounding(offset: torch.Tensor, origin: torch.Tensor) -> torch.Tensor:
    """Up to which a variance may be nothing but rounding.

    Args:
        offset: the mean about the origin of the sums.
        origin: that, in the unit of x.
    """
    few = ROUNDINGS if offset.dtype == torch.float64 else ROUNDINGS / 4
    eps = torch.finfo(offset.dtype).eps
    return torch.addcmul((few * eps * origin) ** 2, offset, offset, value=4 * few * eps)


def input_moments(batch: Batch) -> Moments:
    """The input moments of every neuron, of this batch alone."""
    rule, x = batch.rule, batch.every.x
    channels = x.shape[batch.operation.channel_axis(x)]
    center = batch.mean if batch.centered else x.new_zeros(channels)
    layer, neuron = sums_about(batch, center, weighting.sample_weight(batch))
    offset, variance = raw_moments(layer, neuron, rule.shrinkage)
    origin = batch.operation.per_tap(center, batch.weight)
    varies = torch.ones_like(offset, dtype=torch.bool)
    if variance is None:
        sigma = torch.ones_like(offset)
    else:
        variance = resolved(variance, lost_to_rounding(offset, origin))
        if batch.centered:
            varies = variance
        added = added_to(variance, rule.damping, rule.epsilon)
        sigma = damped_sigma(variance, added)
        if rule.step_size == "plain":
            sigma = sigma / size_of(variance, added, 1)
    mean = origin + offset
    return finite_or_plain(Moments(center, mean, offset, sigma, varies))


def is_finite(mean: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Which neurons have finite moments (sigma or 1 / sigma), [O, 1, ...]."""
    axes = tuple(range(1, sigma.ndim))
    if not (mean.numel() and sigma.numel()):
        return torch.ones_like((mean + sigma).sum(axes, keepdim=True), dtype=torch.bool)
    most, largest, least = mean.abs(), sigma, sigma
    if axes:  # or nothing is centered and nothing is scaled
        # The least and the most tell of all: NaN is both.
        most, largest = (end.amax(axes, keepdim=True) for end in (most, largest))
        least = least.amin(axes, keepdim=True)
    # A sigma of 0 is one over a sum of squares that has overflowed.
    return (most < math.inf) & (largest < math.inf) & (least > 0)


def finite_or_plain(moments: Moments) -> Moments:
    """Give a neuron whose moments are not finite mean 0 and sigma 1: the plain gradient.

    So a NaN in the batch, or an overflow, spreads no further than it would in the plain layer.
    """
    finite = is_finite(moments.mean, moments.sigma)
    if known_to_be_all(finite):
        return moments
    return moments._replace(
        mean=torch.where(finite, moments.mean, 0),
        offset=torch.where(finite, moments.offset, moments.offset - moments.mean),
        sigma=torch.where(finite, moments.sigma, 1),
        varies=torch.where(finite, moments.varies, torch.ones_like(moments.varies)),
    )


def neuron_moments(
    x: torch.Tensor, sample_weight: torch.Tensor, rule: Rule = Rule()
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and scale of the inputs of each neuron of a dense layer under given sample weights.

        mean[o,i] = sum_n s x / sum_n s,   sigma[o,i]^2 = var + damping mean_i(var) + epsilon

    both shrunk towards the layer's own moments where few samples carry weight (see `Rule`).

    Args:
        x: inputs [..., I], floating.
        sample_weight: s [..., O], real, one weight per sample and neuron; their unit does not
            matter. NaN and Inf count as 0, a negative one as its magnitude (with
            ``weighting="signed"`` as it is).
        rule: `scale`, `shrinkage`, `damping`, `epsilon` and `statistics_rows` are used. With
            ``scale="none"`` sigma is 1.

    Returns:
        (mean, sigma), each [O, I], in at least float32.

    Raises:
        TypeError: for an x that is not floating-point.
        ValueError: for shapes that do not fit, or fewer than two samples.

    Transformations: autograd, torch.compile, torch.func.vmap (then: of each example's own batch).

    Example:
        >>> import torch
        >>> from torchnorm import Rule, neuron_moments
        >>> x = torch.tensor([[1.0], [3.0], [5.0]])
        >>> s = torch.tensor([[1.0], [1.0], [0.0]])  # the neuron is not active on the last sample
        >>> mean, sigma = neuron_moments(x, s, Rule(shrinkage=0.0, damping=0.0))
        >>> mean.item(), sigma.item()
        (2.0, 1.0)
    """
    checks.check_floating(x=x)
    checks.check_rule(rule)
    checks.check_sample_weight(sample_weight.shape, x.shape)
    dtype = torch.promote_types(x.dtype, torch.float32)
    weight = x.new_zeros((sample_weight.shape[-1], x.shape[-1]), dtype=dtype)
    signed = "signed" if rule.weighting == "signed" else "gate"
    rule = dataclasses.replace(rule, weighting=signed, step_size="standardized")
    s = sample_weight.to(dtype)
    batch = make_batch(Dense(), x, weight, s, s, rule, centered=True)
    checks.check_samples(batch.samples, centered=True)
    moments = input_moments(batch)
    return moments.mean.expand_as(weight), moments.sigma.expand_as(weight)
