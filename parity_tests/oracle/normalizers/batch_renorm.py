"""Batch Renormalization."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from parity_tests.oracle import Array


def limits(steps: float) -> tuple[float, float]:
    """(r_max, d_max) of the paper: linear from (1, 0) at 5000 to 3 at 40000 and 5 at 25000."""
    r_max = np.interp(steps, [5000, 40000], [1.0, 3.0])
    d_max = np.interp(steps, [5000, 25000], [0.0, 5.0])
    return float(r_max), float(d_max)


def forward(
    x: Array,
    params: Mapping[str, Array],
    state: Mapping[str, Array],
    *,
    train: bool,
    momentum: float = 0.99,
    epsilon: float = 1e-3,
    schedule_scale: float = 1.0,
    use_scale: bool = True,
    use_bias: bool = True,
) -> tuple[Array, dict[str, Any]]:
    """Output and new state."""
    if not train:
        return _affine((x - state["mean"]) / state["std"], params), dict(state)
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axes)
    var = ((x - mean) ** 2).mean(axes)
    # A constant channel has no derivative; it is taken as 0.
    constant = var.real == 0
    std = np.where(constant, 0, np.sqrt(np.where(constant, 1, var))) + epsilon
    r_max, d_max = limits(float(state["steps"]) / schedule_scale)
    r = np.clip(std.real / state["std"], 1 / r_max, r_max)
    d = np.clip((mean.real - state["mean"]) / state["std"], -d_max, d_max)
    new = {
        "mean": momentum * state["mean"] + (1 - momentum) * mean.real,
        "std": momentum * state["std"] + (1 - momentum) * std.real,
        "steps": state["steps"] + 1,
    }
    return _affine((x - mean) / std * r + d, params), new


def _affine(y: Array, params: Mapping[str, Array]) -> Array:
    return y * params.get("scale", 1.0) + params.get("bias", 0.0)
