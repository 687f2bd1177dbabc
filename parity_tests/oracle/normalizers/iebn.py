"""Instance Enhancement Batch Normalization, and the BatchNorm in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from parity_tests.oracle import Array


def batch_norm(
    x: Array,
    mean: Array,
    var: Array,
    *,
    train: bool,
    momentum: float,
    epsilon: float,
    convention: str,
) -> tuple[Array, Array, Array]:
    """Normalized by the batch or by the running statistics, and the new ones."""
    if not train:
        return (x - mean) / np.sqrt(var + epsilon), mean, var
    axes = tuple(range(x.ndim - 1))
    n = np.prod(x.shape[:-1])
    center = x.mean(axes)
    spread = ((x - center) ** 2).sum(axes) / n
    stored = spread.real * n / (n - 1) if convention == "torch" else spread.real
    return (
        (x - center) / np.sqrt(spread + epsilon),
        momentum * mean + (1 - momentum) * center.real,
        momentum * var + (1 - momentum) * stored,
    )


def forward(
    x: Array,
    params: Mapping[str, Array],
    state: Mapping[str, Array],
    *,
    train: bool,
    momentum: float = 0.9,
    epsilon: float = 1e-5,
    convention: str = "flax",
    use_scale: bool = True,
    use_bias: bool = True,
) -> tuple[Array, dict[str, Any]]:
    """Output and new state."""
    pooled = x.mean(tuple(range(1, x.ndim - 1)), keepdims=True)
    logits = pooled * params["attention_scale"] + params["attention_bias"]
    attention = (1 + np.tanh(logits / 2)) / 2  # the sigmoid, without an overflow
    y, mean, var = batch_norm(
        x,
        state["mean"],
        state["var"],
        train=train,
        momentum=momentum,
        epsilon=epsilon,
        convention=convention,
    )
    y = y * (params.get("scale", 1.0) * attention) + params.get("bias", 0.0)
    return y, {"mean": mean, "var": var}
