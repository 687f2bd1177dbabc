"""Stochastic normalization, of given noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from parity_tests.oracle.activations import Array


def forward(
    x: Array,
    params: Mapping[str, Array],
    state: Mapping[str, Array],
    *,
    train: bool,
    noise: Array,
    samples: int = 64,
    statistics: str = "running",
    momentum: float = 0.99,
    epsilon: float = 1e-5,
    **affine: Any,
) -> tuple[Array, dict[str, Array]]:
    """See `jaxnorm.linen.normalizers.StochasticNorm`."""
    mean, var, new = state["mean"], state["var"], dict(state)
    if train:
        axes = tuple(range(x.ndim - 1))
        m = x.mean(axes)
        v = ((x - m) ** 2).mean(axes)
        new = {
            "mean": momentum * mean + (1 - momentum) * m.real,
            "var": momentum * var + (1 - momentum) * v.real,
        }
        if statistics == "batch":
            mean, var = m, v
    u, shift = noise
    y = u * ((x - mean) / np.sqrt(var + epsilon) + shift)
    return y * params.get("scale", 1) + params.get("bias", 0), new
