"""Switchable Normalization, with each norm's statistics taken from x itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from parity_tests.oracle import Array


def forward(
    x: Array,
    params: Mapping[str, Array],
    state: Mapping[str, Array],
    *,
    train: bool,
    momentum: float = 0.9,
    epsilon: float = 1e-5,
    statistics: tuple[str, ...] = ("instance", "layer", "batch"),
    unbiased: bool = False,
    use_scale: bool = True,
    use_bias: bool = True,
) -> tuple[Array, dict[str, Any]]:
    """Output and new state."""
    space = tuple(range(1, x.ndim - 1))
    axes = {"instance": space, "layer": (*space, x.ndim - 1), "batch": (0, *space)}
    moments = {name: _moments(x, axes[name], space, unbiased) for name in statistics}
    new = dict(state)
    if "batch" in statistics:
        mean, var = moments["batch"]
        if train:
            for name, value in (("mean", mean), ("var", var)):
                seen = value.real.reshape(-1)
                new[name] = momentum * state[name] + (1 - momentum) * seen
        else:
            moments["batch"] = state["mean"], state["var"]
    of_means, of_vars = _softmax(params["mean_weight"]), _softmax(params["var_weight"])
    mean = sum(w * moments[name][0] for w, name in zip(of_means, statistics, strict=True))
    var = sum(w * moments[name][1] for w, name in zip(of_vars, statistics, strict=True))
    y = (x - mean) / np.sqrt(var + epsilon)
    return y * params.get("scale", 1.0) + params.get("bias", 0.0), new


def _moments(
    x: Array, axes: tuple[int, ...], space: tuple[int, ...], unbiased: bool
) -> tuple[Array, Array]:
    """Mean and variance over the axes.

    What the published code has in place of the unbiased variance: the mean over instances of their
    unbiased variances, and the biased variance of their means. Without space: the unbiased one.
    """
    mean = x.mean(axes, keepdims=True)
    var = ((x - mean) ** 2).mean(axes, keepdims=True)
    if unbiased and space:
        n = np.prod([x.shape[axis] for axis in space])
        within = x - x.mean(space, keepdims=True)
        var = var + (within**2).mean(axes, keepdims=True) / (n - 1)
    elif unbiased:
        n = np.prod([x.shape[axis] for axis in axes])
        var = var * n / (n - 1)
    return mean, var


def _softmax(weight: Array) -> Array:
    e = np.exp(weight - weight.real.max())
    return e / e.sum()
