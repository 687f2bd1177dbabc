"""Batches of samples, and their moments in two passes: what tracked statistics are held against."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np


def batches(
    count: int, shape: tuple[int, ...] = (12, 5), outputs: int = 4
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(x, gradient at z) whose means and scales differ between features, and between batches."""
    rng = np.random.default_rng(0)
    scale, mean = np.exp(rng.standard_normal(shape[-1])), 3 * rng.standard_normal(shape[-1])
    for _ in range(count):
        x = (rng.standard_normal(shape) + rng.standard_normal(shape[-1])) * scale + mean
        yield x, rng.standard_normal((*shape[:-1], outputs))


def naive(
    parts: Any,
    weights: Any,
    *,
    shrinkage: float = 8.0,
    damping: float = 0.1,
    epsilon: float = 0.0,
    scale: str = "neuron",
    rows: Any = slice(None),
) -> tuple[np.ndarray, np.ndarray]:
    """(mean, sigma) [I,O] of samples, two passes: parts are (x [N,I], s [N,O]), weighted.

    sigma is relative to its root mean square, and every input varies. Of each part only these rows
    tell how a neuron differs from the layer.
    """
    every = np.concatenate([x for x, _ in parts])
    u = np.concatenate([np.full(len(x), w) for w, (x, _) in zip(weights, parts, strict=True)])
    whole = u @ every / u.sum()
    whole_spread = u @ (every - whole) ** 2 / u.sum()
    x = np.concatenate([x[rows] for x, _ in parts])
    s = np.concatenate([w * s[rows] for w, (_, s) in zip(weights, parts, strict=True)])
    u = np.concatenate([np.full(len(x[rows]), w) for w, (x, _) in zip(weights, parts, strict=True)])
    layer = u @ x / u.sum()
    spread = u @ (x - layer) ** 2 / u.sum()
    trust = s.sum(0) ** 2 / (s.sum(0) ** 2 + shrinkage * (s**2).sum(0))
    neuron = s.T @ x / s.sum(0)[:, None]  # [O,I]
    mean = whole + trust[:, None] * (neuron - layer)
    within = np.stack([s[:, o] @ (x - neuron[o]) ** 2 / s[:, o].sum() for o in range(s.shape[1])])
    between = (trust * (1 - trust))[:, None] * (neuron - layer) ** 2
    variance = trust[:, None] * within + (1 - trust)[:, None] * spread + between
    variance = variance / spread * whole_spread
    if scale == "layer":
        variance = np.broadcast_to(whole_spread, variance.shape)
    variance = variance.T
    square = variance + damping * variance.mean(0) + epsilon
    return mean.T, np.sqrt(square / square.mean(0))
