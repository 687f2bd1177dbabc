"""How far off a result may be in any order of its sums, by the condition of the case."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from parity_tests import oracle
from parity_tests.cases import Case
from parity_tests.oracle import Array
from parity_tests.tolerances import summation

#: By how many sigmas the gradient in a form is divided.
_DIVISIONS = {"preconditioned": 2, "standardized": 1}


class Rounding(NamedTuple):
    """Bounds for the entries of what a layer returns, in the shapes of `oracle.Layer`."""

    z: Array
    g_x: Array
    g_kernel: Array
    g_bias: Any  # None without a bias


class _Group(NamedTuple):
    """One group of a layer: x[N,I], delta and s[N,O], the others [I,O]; statistics of `rows`."""

    x: Array
    delta: Array
    s: Array
    mean: Array
    sigma: Array
    unit: Array
    g_kernel: Array
    mask: Array
    rows: list[int]
    statistics_center: Array
    gradient_center: Array


@lru_cache(maxsize=8)
def bound(case: Case, *, plain: bool) -> Rounding:
    """The bounds of a case.

    A sum of n products, in any order, is off by `summation(n)` times the sum of their absolute
    values. What an implementation sums are the products of x - c, where c is near the mean; where
    it starts from the plain gradient, c = 0, and all digits that x has before its deviations are
    lost. So they are where an operation pads: what the padding adds is a difference of two sums.

    To first order, with T = sum |x - c| |delta| + |c - mean| sum |delta|, and A and D the first two
    absolute moments about c under the weights of the neuron, shrunk as those are (D damped):

        g_kernel   (T + |sum delta| A) / sigma^2 + |g_kernel| (D / sigma^2 + D' / sigma'^2)
        g_bias     sum |delta| + sum_i (|mean| error of g_kernel + A |g_kernel| + |mean g_kernel|)

    for sum, mean, and sigma; in the last, sigma is absolute, and D' and sigma'^2 are the means over
    what a neuron reads, whose root it is divided by. The plain gradients, z and g_x are sums of
    products as they stand.

    Args:
        case: the oracle's results in it are taken.
        plain: whether the gradient is made from the plain one.
    """
    view, expected, dtype = case.view, case.expected, case.statistics_dtype
    sizes = _sums_of_sizes(case)
    samples, inputs = len(view.x), len(view.kernel)
    outputs = view.taps * view.kernel.shape[2]
    z, g_x = summation(inputs + 1, dtype) * sizes.z, summation(outputs, dtype) * sizes.g_x
    g_kernel = summation(samples, dtype) * sizes.g_kernel
    g_bias = None if case.bias is None else summation(samples, dtype) * sizes.g_bias
    if case.knobs.gradient == "plain":
        return Rounding(z, g_x, g_kernel, g_bias)
    mask = np.ones(case.kernel.shape) if case.mask is None else case.mask
    patches = view.patches(case.x.astype(np.float64))
    channels = case.x.astype(np.float64).ravel()[view.channels].mean(0).reshape(len(view.bias), -1)
    taken = oracle.spaced(samples // view.samples, case.knobs.statistics_rows)
    rows = [row * view.samples + at for row in taken for at in range(view.samples)]
    for number, mean_of_channels in enumerate(channels):
        at, neurons = view.kernel[:, number], view.z[:, number]
        delta = case.delta.astype(np.float64).flat[neurons]
        gate: Any = case.gate.flat[neurons] if isinstance(case.gate, np.ndarray) else case.gate
        s = oracle.sample_weight(expected.z.flat[neurons], delta, gate, case.knobs.weighting)
        center = np.tile(mean_of_channels, view.taps)
        if case.bias is None or (view.x[:, number] < 0).any():
            center = np.zeros_like(center)
        # The statistics of a large mean are taken in the second step, see `implementations`.
        known = not plain or case.family == "large_mean"
        group = _Group(
            patches[:, number],
            delta,
            s,
            expected.mean.flat[at],
            expected.sigma.flat[at],
            expected.unit.flat[at],
            expected.g_kernel.flat[at],
            mask.flat[at],
            rows,
            center * known,
            center * (not plain),
        )
        g_kernel.flat[at], of_bias = _of_group(group, case)
        if g_bias is not None:
            g_bias.flat[view.bias[number]] = of_bias
    return Rounding(z, g_x, g_kernel, g_bias)


def _sums_of_sizes(case: Case) -> oracle.Layer:
    """The plain layer on absolute values: sum |x w|, sum |delta w|, sum |x delta|, sum |delta|."""
    arrays = (case.x, case.kernel, case.bias, case.delta)
    x, kernel, bias, delta = (None if a is None else np.abs(a.astype(np.float64)) for a in arrays)
    knobs = oracle.Knobs(gradient="plain")
    return oracle.linear(case.view, x, kernel, bias, delta, None, knobs, case.mask)  # type: ignore[arg-type]


def _of_group(group: _Group, case: Case) -> tuple[Array, Array]:
    """The bounds of one group."""
    x, delta, _, mean, sigma, unit, g_kernel, mask, _, _, center = group
    roundings = summation(len(x), case.statistics_dtype)
    divisions = _DIVISIONS[case.knobs.gradient]
    first, second = _absolute_moments(group, case)
    # A center is rounded too.
    distance = np.abs(x - center) + roundings * np.abs(center)
    size = np.abs(delta).sum(0)
    summed = distance.T @ np.abs(delta) + np.abs(center[:, None] - mean) * size
    of_kernel = (summed + np.abs(delta.sum(0)) * first) / sigma**divisions
    of_sigma = second / (unit * sigma) ** 2
    if case.knobs.step_size == "plain":
        of_sigma = of_sigma + second.mean(0) / unit**2
    of_kernel += divisions / 2 * np.abs(g_kernel) * of_sigma
    of_kernel *= roundings * mask
    of_bias = roundings * size
    if divisions == 2:
        over_inputs = summation(x.shape[1], case.statistics_dtype)
        moved = np.abs(mean) * of_kernel + roundings * first * np.abs(g_kernel)
        of_bias = of_bias + (moved + over_inputs * np.abs(mean * g_kernel)).sum(0)
    return of_kernel, of_bias


def _absolute_moments(group: _Group, case: Case) -> tuple[Array, Array]:
    """E|x - c| and E(x - c)^2, damped, as large as the terms that the statistics sum."""
    knobs, center = case.knobs, group.statistics_center
    roundings = summation(len(group.x), case.statistics_dtype)
    s = np.abs(group.s[group.rows])
    mass = np.abs(group.s[group.rows].sum(0))
    share = np.divide(s, mass, out=np.zeros_like(s), where=mass != 0)
    prior = knobs.shrinkage * (share**2).sum(0)
    trust = np.where(mass != 0, 1 / (1 + prior), 0.0)
    distance = np.abs(group.x - center) + roundings * np.abs(center)
    some = distance[group.rows]

    def shrunk(values: Array, trust: Array) -> Array:
        return trust * (values.T @ share) + (1 - trust) * values.mean(0)[:, None]

    first = shrunk(some, trust)
    if knobs.statistics_rows is not None:  # a mean of all, and the difference of two of the rows
        first = first + (distance.mean(0) + some.mean(0))[:, None]
    if case.bias is None:
        first = np.zeros_like(group.mean)
    if knobs.scale == "none":
        return first, np.zeros_like(first)
    layer = np.repeat((distance**2).mean(0)[:, None], len(trust), axis=1)
    second = layer if knobs.scale == "layer" else shrunk(some**2, trust)
    if knobs.scale == "neuron" and knobs.statistics_rows is not None:
        # A product of one variance and the ratio of two: each in the unit of the result.
        centered = case.bias is not None
        of_all, of_rows = (
            np.square(x - (x.mean(0) if centered else 0.0)).mean(0)[:, None]
            for x in (group.x, group.x[group.rows])
        )
        ratio = np.divide(of_all, of_rows, out=np.zeros_like(of_all), where=of_rows > 0)
        stretch = np.maximum(1.0, (s.max(0) / np.where(mass != 0, mass, 1.0)) * len(s))
        second = ratio * (second + stretch * (some**2).mean(0)[:, None]) + stretch * layer
    return first, second + knobs.damping * second.mean(0)
