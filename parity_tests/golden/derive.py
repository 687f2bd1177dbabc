"""How the later golden files were computed: every neuron by itself, in NumPy, from the formulas.

    python -m parity_tests.golden.derive

writes them anew. It knows nothing of the packages and nothing of the oracle, whose sums it does not
share: a neuron's inputs are a mixture of its own samples and the layer's, with a share of trust
each, and what is written here is the mean and the variance of that mixture. With `statistics_rows`
it is a mixture of some samples only, from which come the distance of its mean from theirs, and the
ratio of its variance to theirs.
"""

from __future__ import annotations

import json
from itertools import product
from math import erf
from typing import Any, NamedTuple

import numpy as np

from parity_tests import golden

#: What the default of both packages is, every knob said.
DEFAULT = {
    "weighting": "gate",
    "scale": "neuron",
    "gradient": "preconditioned",
    "shrinkage": 8.0,
    "damping": 0.1,
    "epsilon": 0.0,
    "statistics_rows": None,
    "step_size": "plain",
}
SLOPES = {
    "relu": lambda z: float(z > 0),
    "tanh": lambda z: 1 - np.tanh(z) ** 2,
    "silu": lambda z: (1 + z / (1 + np.exp(z))) / (1 + np.exp(-z)),
    "gelu_erf": lambda z: (
        (1 + erf(z / np.sqrt(2))) / 2 + z * np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    ),
}


class Made(NamedTuple):
    """A file: how its inputs are drawn, and the rule.

    Attributes:
        gate: the activation.
        rule: knobs other than the default's.
        still: which channels of x are always 0, and which always 3.7.
        geometry: of a convolution; None for a dense layer.
        samples: of a dense layer.
    """

    gate: str = "relu"
    rule: dict[str, Any] = {}  # noqa: RUF012 (a tuple's default is nobody's to change)
    still: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    geometry: dict[str, Any] | None = None
    samples: int = 48


def _window(padding: Any, strides: int = 1, dilation: int = 1, groups: int = 1) -> dict[str, Any]:
    return {
        "strides": strides,
        "padding": padding,
        "kernel_dilation": dilation,
        "feature_group_count": groups,
    }


STILL = ((1,), (4,))
MADE = {
    "dense_19": Made(),
    "dense_20": Made("silu", {"scale": "layer"}),
    "dense_21": Made("silu", {"weighting": "error"}),
    "dense_22": Made("relu", {"weighting": "uniform"}),
    "dense_23": Made("gelu_erf", {"gradient": "standardized"}),
    "dense_24": Made(still=STILL),
    "dense_25": Made("tanh", {"statistics_rows": 16}, STILL),
    "dense_26": Made("silu", {"shrinkage": 0.0, "damping": 0.0}, STILL),
    "dense_27": Made("relu", {"scale": "none"}),
    "dense_28": Made("gelu_erf", {"weighting": "error", "gradient": "standardized"}, STILL),
    "dense_29": Made("gelu_erf", {"statistics_rows": 40}, STILL, samples=96),
    "conv2d_08": Made(geometry=_window([[1, 1], [1, 1]])),
    "conv2d_09": Made("silu", geometry=_window([[1, 1], [0, 2]], strides=2, groups=2)),
    "conv2d_10": Made(still=((1,), (2,)), geometry=_window([[0, 0], [0, 0]])),
    "conv2d_11": Made(still=((1,), (2,)), geometry=_window([[1, 1], [1, 1]], groups=2)),
    "conv2d_12": Made(
        "silu",
        {"scale": "layer", "gradient": "standardized", "statistics_rows": 2},
        geometry=_window([[2, 2], [2, 2]], dilation=2, groups=2),
    ),
}


class Neuron(NamedTuple):
    """What one neuron reads: mean, variance and whether it varies, [I]."""

    mean: np.ndarray
    variance: np.ndarray
    varies: np.ndarray


def spaced(number: int, least: int | None) -> list[int]:
    """Which of so many rows `statistics_rows` leaves: a block of each k blocks."""
    if least is None or least >= number:
        return list(range(number))
    k = number // least
    while number % k:
        k -= 1
    block = 1
    while block < 64 and 32 * block <= least and number % (2 * block * k) == 0:
        block *= 2
    starts = range(0, number, block * k)
    return [start + n for start in starts for n in range(block)]


def neuron(x: np.ndarray, s: np.ndarray, rows: list[int], rule: dict[str, Any]) -> Neuron:
    """What samples x [N, I], weighted by s [N], are for a neuron of which `rows` tell."""
    some = x[rows]
    seen = mixture(some, s[rows], rule)
    if rule["statistics_rows"] is None:
        return seen
    mean = x.mean(0) + seen.mean - some.mean(0)
    varies = np.ptp(x, axis=0) > 0
    variance = np.where(varies, x.var(0), 0.0)
    if rule["scale"] != "neuron":
        return Neuron(mean, variance, varies)
    told = np.ptp(some, axis=0) > 0
    ratio = np.where(told, seen.variance / np.where(told, some.var(0), 1.0), 1.0)
    return Neuron(mean, variance * ratio, np.where(told, seen.varies, varies))


def mixture(x: np.ndarray, s: np.ndarray, rule: dict[str, Any]) -> Neuron:
    """The mixture of a neuron's samples x [N, I], weighted by s [N], and the layer's."""
    trust = 0.0
    if s.any():
        number = s.sum() ** 2 / (s**2).sum()
        trust = number / (number + rule["shrinkage"])
    own = np.average(x, axis=0, weights=s) if s.any() else x.mean(0)
    mean = trust * own + (1 - trust) * x.mean(0)
    varies = np.ptp(x, axis=0) > 0
    if rule["scale"] != "neuron":
        return Neuron(mean, np.where(varies, x.var(0), 0.0), varies)
    variance = (1 - trust) * ((x - mean) ** 2).mean(0)
    if trust:
        variance += trust * np.average((x - mean) ** 2, axis=0, weights=s)
        if trust == 1:
            varies = np.ptp(x[s > 0], axis=0) > 0
    return Neuron(mean, np.where(varies, variance, 0.0), varies)


def layer(
    x: np.ndarray,
    z: np.ndarray,
    delta: np.ndarray,
    gate: str,
    rule: dict[str, Any],
    positions: int = 1,
) -> list[np.ndarray]:
    """[g_kernel [I, O], g_bias [O], mean, sigma] of samples x [N, I], z and delta [N, O].

    A row, which `statistics_rows` counts, is so many samples as there are positions.
    """
    weights = {
        "gate": lambda z, delta: abs(SLOPES[gate](z)),
        "error": lambda z, delta: delta**2,
        "uniform": lambda z, delta: 1.0,
    }[rule["weighting"]]
    s, columns = np.vectorize(weights, otypes=[float])(z, delta), []
    taken = spaced(len(x) // positions, rule["statistics_rows"])
    rows = [row * positions + at for row in taken for at in range(positions)]
    for o in range(z.shape[1]):
        n = neuron(x, s[:, o], rows, rule)
        square = n.variance + rule["damping"] * n.variance.mean() + rule["epsilon"]
        sigma = np.sqrt(np.where(square > 0, square, 1.0) / square[n.varies].mean())
        if rule["scale"] == "none":
            sigma = np.ones_like(sigma)
        g_w = np.array([(x[:, i] - m) @ delta[:, o] for i, m in enumerate(n.mean)]) / sigma
        g_w, g_b = np.where(n.varies, g_w, 0.0), delta[:, o].sum()
        if rule["gradient"] == "preconditioned":
            g_w = g_w / sigma
            g_b -= n.mean @ g_w
        columns.append((g_w, g_b, n.mean, sigma))
    return [np.stack(part, axis=-1) for part in zip(*columns, strict=True)]


def derived(name: str) -> dict[str, np.ndarray]:
    """All arrays of a file."""
    made = MADE[name]
    rule, rng = DEFAULT | made.rule, np.random.default_rng(sorted(MADE).index(name))
    geometry = made.geometry
    shape, kernel_shape = (made.samples, 7), (7, 6)
    if geometry is not None:
        shape = (4, 7, 6, 4)
        kernel_shape = (3, 3, 4 // geometry["feature_group_count"], 6)
    scale, mean = np.exp(rng.standard_normal(shape[-1])), rng.uniform(-2, 2, shape[-1])
    x = (rng.standard_normal(shape) + mean) * scale
    x[..., list(made.still[0])], x[..., list(made.still[1])] = 0.0, 3.7
    kernel = rng.standard_normal(kernel_shape) / np.sqrt(np.prod(kernel_shape[:-1]))
    z = linear(x, kernel, geometry)
    # Each neuron is active on some samples; the first on none.
    bias = -np.diag(np.quantile(z.reshape(-1, 6), rng.uniform(0.3, 0.8, 6), axis=0))
    bias = np.array([-z[..., 0].max() - 1.0, *bias[1:]])
    delta = (rng.standard_normal(z.shape) + z / z.std()) * np.exp(rng.standard_normal(6))
    given = {"x": x, "kernel": kernel, "bias": bias, "delta": delta}
    z = z + bias
    if geometry is None:
        g_kernel, g_bias, mean, sigma = layer(x, z, delta, made.gate, rule)
        out = {"g_x": delta @ kernel.T, "g_kernel": g_kernel, "g_bias": g_bias}
        return given | {"z": z} | out | {"mean": mean, "sigma": sigma}
    groups = geometry["feature_group_count"]
    wide = (np.split(a.reshape(-1, 6), groups, axis=1) for a in (z, delta))
    every = zip(patches(x, geometry), *wide, strict=True)
    positions = int(np.prod(z.shape[1:3]))  # of an image, which is a row
    parts = [layer(x_g, z_g, delta_g, made.gate, rule, positions) for x_g, z_g, delta_g in every]
    joined = [np.concatenate(part, axis=-1) for part in zip(*parts, strict=True)]
    names = ("g_kernel", "g_bias", "mean", "sigma")
    shapes = (kernel_shape, (6,), kernel_shape, kernel_shape)
    out = {n: a.reshape(s) for n, a, s in zip(names, joined, shapes, strict=True)}
    return given | {"z": z} | out


def patches(x: np.ndarray, geometry: dict[str, Any]) -> list[np.ndarray]:
    """What every position of every image sees, [positions, taps and channels], group by group."""
    padded = np.pad(x, [(0, 0), *geometry["padding"], (0, 0)])
    reach = 2 * geometry["kernel_dilation"] + 1
    taps = range(0, reach, geometry["kernel_dilation"])
    ends = (size - reach + 1 for size in padded.shape[1:3])
    places = list(product(*(range(0, end, geometry["strides"]) for end in ends)))
    images = np.split(padded, geometry["feature_group_count"], axis=-1)
    return [
        np.array(
            [
                [image[top + i, left + j, c] for i in taps for j in taps for c in range(channels)]
                for image in group
                for top, left in places
            ]
        )
        for group in images
        for channels in (group.shape[-1],)
    ]


def linear(x: np.ndarray, kernel: np.ndarray, geometry: dict[str, Any] | None) -> np.ndarray:
    """The pre-activations, but for the bias."""
    if geometry is None:
        return x @ kernel
    parts = np.split(kernel, geometry["feature_group_count"], axis=-1)
    seen = patches(x, geometry)
    z = [rows @ part.reshape(rows.shape[1], -1) for rows, part in zip(seen, parts, strict=True)]
    sizes = (
        sum(pads) + size - 2 * geometry["kernel_dilation"] - 1
        for pads, size in zip(geometry["padding"], x.shape[1:3], strict=True)
    )
    space = (size // geometry["strides"] + 1 for size in sizes)
    return np.concatenate(z, axis=-1).reshape(len(x), *space, -1)


def main() -> None:
    """Write the files and their entries in the manifest."""
    path = golden.FOLDER / "manifest.json"
    entries = [e for e in json.loads(path.read_text()) if e["name"] not in MADE]
    for name, made in MADE.items():
        operation = name.partition("_")[0]
        entry: dict[str, Any] = {"name": name, "operation": operation, "gate": made.gate}
        entry["rule"] = DEFAULT | made.rule
        entries.append(entry if made.geometry is None else entry | {"geometry": made.geometry})
        arrays: dict[str, Any] = derived(name)
        np.savez(golden.FOLDER / f"{name}.npz", **arrays)
    path.write_text("[\n" + ",\n".join(map(json.dumps, entries)) + "\n]\n")


if __name__ == "__main__":
    main()
