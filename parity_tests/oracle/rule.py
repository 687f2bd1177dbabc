"""What is right: the neuron-wise rule in NumPy float64, written for the reader.

Everything else in this repository is compared with this room. It follows the textbook: two passes,
centered sums, explicit patches (`operations` says what one other than dense reads). It is
slow and it is short. Letters: N samples, I inputs, O outputs (neurons), G groups; x[N,I], z[N,O],
delta[N,O] = dL/dz, s[N,O] sample weight, g_* gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from parity_tests.oracle.activations import Array, Gate, slope
from parity_tests.oracle.operations import View


@dataclass(frozen=True)
class Knobs:
    """The knobs of the rule, with the defaults both packages must have."""

    weighting: str = "gate"
    scale: str = "neuron"
    gradient: str = "preconditioned"
    shrinkage: float = 8.0
    damping: float = 0.1
    epsilon: float = 0.0
    statistics_rows: int | None = None
    step_size: str = "plain"


class Moments(NamedTuple):
    """Center and width of the inputs as each neuron sees them, [I,O]; mean = shift + offset.

    `varies` says which of them do, `unit` what sigma was divided by, [O] or 1.
    """

    mean: Array
    sigma: Array
    shift: Array
    offset: Array
    varies: NDArray[np.bool_]
    unit: Any = 1.0


class Layer(NamedTuple):
    """All that a layer returns and all that its backward pass returns.

    `unit` is what sigma was divided by, in its shape.
    """

    z: Array
    g_x: Array
    g_kernel: Array
    g_bias: Any  # None without a bias
    mean: Array
    sigma: Array
    unit: Array


def sample_weight(z: Array, delta: Array, gate: Gate, weighting: str) -> Array:
    """How much each sample counts for each neuron, [N,O]."""
    derivative = slope(gate, z)
    weight = {
        "gate": np.abs(derivative),
        "gate_squared": derivative**2,
        "signed": derivative,
        "uniform": np.ones_like(z),
        "error": delta**2,
    }[weighting]
    return np.where(np.isfinite(weight), weight, 0.0)


def spaced(rows: int, least: int | None) -> list[int]:
    """Which of so many rows are taken where at least so many are wanted (None: all).

    One block of them out of every k, k as large as it may be: of as many rows as the largest power
    of two that leaves whole groups of blocks, 64 at most, and a sixteenth of what is wanted.
    """
    if least is None or least >= rows:
        return list(range(rows))
    apart = max(k for k in range(1, rows + 1) if rows % k == 0 and rows // k >= least)
    lengths = (2**n for n in range(7))
    fit = [b for b in lengths if b <= max(1, least // 16) and rows % (b * apart) == 0]
    block = max(fit, default=1)
    return [n for n in range(rows) if n % (block * apart) < block]


def moments(
    x: Array, s: Array, knobs: Knobs, *, centered: bool = True, samples: int = 1
) -> Moments:
    """Mean and sigma of each neuron's inputs; `centered=False` is the layer without a bias.

    sigma is absolute, whatever `step_size` says. The layer's own moments are those of all samples.
    A neuron's are these, moved and stretched by as much as its mean and its variance differ from
    the layer's on the rows that `statistics_rows` leaves, of so many samples each.
    """
    if knobs.weighting == "signed" and knobs.scale == "neuron":
        raise ValueError("signed weights give no variance: use scale 'layer' or 'none'")
    taken = spaced(len(x) // samples, knobs.statistics_rows)
    rows = [row * samples + position for row in taken for position in range(samples)]
    s = s[rows]
    largest = np.abs(s).max(0)  # the unit of s is free: one in which squares do not underflow
    s = np.divide(s, largest, out=np.zeros_like(s), where=largest != 0)
    mass, squares = s.sum(0), (s**2).sum(0)

    # Trust in the neuron's own samples: n_eff / (n_eff + kappa), where n_eff = mass^2 / sum s^2.
    neuron_and_prior = mass**2 + knobs.shrinkage * squares
    trust = np.divide(
        mass**2, neuron_and_prior, out=np.zeros_like(mass), where=neuron_and_prior != 0
    )

    # Means are taken of what is left after a first mean: the digits of a large mean would cost
    # those of the deviations. `shift + center` is the layer's mean, `step` leads to the neuron's.
    shift = x.mean(0) if centered else np.zeros(x.shape[1])
    rest = x - shift
    center = rest.mean(0) if centered else np.zeros_like(shift)
    layer_variance = ((rest - center) ** 2).mean(0)
    deviation = rest[rows] - (rest[rows].mean(0) if centered else 0.0)
    share = np.divide(s, mass, out=np.zeros_like(s), where=mass != 0)
    step = deviation.T @ share if centered else np.zeros((x.shape[1], s.shape[1]))
    offset = center[:, None] + trust * step

    variance = np.repeat(layer_variance[:, None], s.shape[1], axis=1)
    if knobs.scale == "neuron":
        rows_variance = np.repeat((deviation**2).mean(0)[:, None], s.shape[1], axis=1)
        columns = zip(step.T, share.T, strict=True)
        spread = np.stack([((deviation - e) ** 2).T @ w for e, w in columns], axis=1)
        # Two populations, pooled: the variance in each, and that between their means.
        pooled = trust * spread + (1 - trust) * rows_variance + trust * (1 - trust) * step**2
        differ = np.repeat(_spread(x[rows], centered)[:, None], s.shape[1], axis=1)
        stretch = np.divide(pooled, rows_variance, out=np.ones_like(pooled), where=differ)
        variance = variance * stretch

    varies = _varies(x, rows, s, trust, knobs, centered=centered)
    damped = variance + knobs.damping * variance.mean(0) + knobs.epsilon
    sigma = np.where(damped == 0, 1.0, np.sqrt(damped))
    if knobs.scale == "none":
        sigma = np.ones_like(sigma)
    sound = np.isfinite(offset).all(0) & np.isfinite(sigma).all(0)
    # A neuron whose moments are not finite is left alone: mean 0, sigma 1 is the plain gradient.
    shift, offset = np.where(sound, shift[:, None], 0.0), np.where(sound, offset, 0.0)
    sigma, varies = np.where(sound, sigma, 1.0), varies & sound
    return Moments(shift + offset, sigma, shift, offset, varies)


def _spread(x: Array, centered: bool) -> NDArray[np.bool_]:
    """Which inputs differ, without a bias: from zero, [I].

    Asked of the numbers themselves: a variance that is 0 but for rounding would not tell.
    """
    return (np.ptp(x, 0) if centered else np.abs(x).max(0)) > 0


def _varies(
    x: Array, rows: list[int], s: Array, trust: Array, knobs: Knobs, *, centered: bool
) -> NDArray[np.bool_]:
    """Which inputs differ on the samples that a neuron counts, [I,O].

    Where they are all the same on the rows, these tell nothing of the neuron.
    """
    layer = np.repeat(_spread(x, centered)[:, None], s.shape[1], axis=1)
    if knobs.scale != "neuron":
        return layer
    none = np.zeros(x.shape[1], bool)
    own = [_spread(x[rows][w != 0], centered) if w.any() else none for w in s.T]
    neuron = (trust < 1) | (np.stack(own, axis=1) & (trust > 0))
    return np.where(_spread(x[rows], centered)[:, None], neuron, layer)


def unit(at: Moments, knobs: Knobs) -> Array:
    """What each neuron's sigma is divided by, [O]: 1, or its root mean square over what varies."""
    count = at.varies.sum(0)
    if knobs.step_size == "standardized" or knobs.scale == "none":
        return np.ones(count.shape)
    sigma = np.where(at.varies, at.sigma, 0.0)
    largest = np.where(count == 0, 1.0, sigma.max(0, initial=0.0))  # squares would overflow
    root = largest * np.sqrt(((sigma / largest) ** 2).sum(0) / np.maximum(count, 1))
    return np.where(count == 0, 1.0, root)


def weight_gradients(
    x: Array,
    delta: Array,
    s: Array,
    knobs: Knobs,
    *,
    bias: bool,
    mask: Any = 1.0,
    samples: int = 1,
    counted: Any = True,
) -> tuple[Array, Array | None, Moments]:
    """Kernel and bias gradient in (or pulled back from) the coordinates of each neuron.

    Where `mask` is 0 there is no weight, hence no coordinate and no gradient. Statistics are of the
    samples that are `counted` [N], the gradient is of all.
    """
    counted = np.broadcast_to(counted, len(x))
    count = counted.sum()
    if knobs.gradient != "plain" and (count == 0 or (bias and count == 1)):
        raise ValueError(f"{count} sample(s) have no statistics")
    at = moments(x[counted], s[counted], knobs, centered=bias, samples=samples)
    by = unit(at._replace(varies=at.varies & (np.asarray(mask) != 0)), knobs)
    at = at._replace(sigma=at.sigma / by, unit=by)
    g_bias = delta.sum(0)
    if knobs.gradient == "plain":
        return x.T @ delta * mask, g_bias if bias else None, at
    columns = zip(at.shift.T, at.offset.T, delta.T, strict=True)
    products = [(x - shift - offset).T @ d for shift, offset, d in columns]
    standardized = np.stack(products, axis=1) / at.sigma * mask
    if knobs.gradient == "standardized":
        return standardized, g_bias if bias else None, at
    g_kernel = standardized / at.sigma
    moved = np.multiply(at.mean, g_kernel, out=np.zeros_like(g_kernel), where=at.mean != 0)
    return g_kernel, g_bias - moved.sum(0) if bias else None, at


def dense(
    x: Array,
    kernel: Array,
    bias: Array | None,
    delta: Array,
    gate: Gate,
    knobs: Knobs,
    mask: Any = 1.0,
    samples: int = 1,
    counted: Any = True,
) -> Layer:
    """A whole dense layer, x[...,I], kernel[I,O], delta[...,O]: forward, backward, moments.

    One row is so many samples; the others as in `weight_gradients`.
    """
    rows, errors = x.reshape(-1, x.shape[-1]), delta.reshape(-1, delta.shape[-1])
    z = rows @ kernel + (0.0 if bias is None else bias)
    s = sample_weight(z, errors, gate, knobs.weighting)
    options = {"mask": mask, "samples": samples, "counted": counted}
    g_kernel, g_bias, at = weight_gradients(
        rows, errors, s, knobs, bias=bias is not None, **options
    )
    z, g_x = z.reshape(delta.shape), (errors @ kernel.T).reshape(x.shape)
    return Layer(z, g_x, g_kernel, g_bias, at.mean, at.sigma, 0 * at.sigma + at.unit)


def forward(view: View, x: Array, kernel: Array, bias: Array | None) -> Array:
    """z[N,G,O] of any operation, on its patches."""
    z = np.einsum("ngi,igo->ngo", view.patches(x), kernel.ravel()[view.kernel])
    return z if bias is None else z + bias.ravel()[view.bias]


def linear(
    view: View,
    x: Array,
    kernel: Array,
    bias: Array | None,
    delta: Array,
    gate: Gate,
    knobs: Knobs,
    mask: Array | None = None,
) -> Layer:
    """A layer in the framework's shapes: each group is a dense layer on its patches."""
    mask = np.ones_like(kernel) if mask is None else mask
    kernel, patches = kernel * mask, view.patches(x)
    z, g_x = np.zeros(view.z_shape), np.zeros(x.size + 1)  # the last one is the padding's
    g_kernel, mean, sigma, by = (np.zeros(kernel.shape) for _ in range(4))
    g_bias = None if bias is None else np.zeros(bias.shape)
    for group in range(view.x.shape[1]):
        weights, outputs, biases = view.kernel[:, group], view.z[:, group], view.bias[group]
        part = dense(
            patches[:, group],
            kernel.flat[weights],
            None if bias is None else bias.flat[biases],
            delta.flat[outputs],
            gate.flat[outputs] if isinstance(gate, np.ndarray) else gate,
            knobs,
            mask.flat[weights],
            view.samples,
        )
        z.flat[outputs] = part.z
        np.add.at(g_x, view.x[:, group], part.g_x)
        for whole, its in zip((g_kernel, mean, sigma, by), (part.g_kernel, *part[4:]), strict=True):
            whole.flat[weights] = its
        if g_bias is not None:
            g_bias.flat[biases] = part.g_bias
    return Layer(z, g_x[:-1].reshape(x.shape), g_kernel, g_bias, mean, sigma, by)
