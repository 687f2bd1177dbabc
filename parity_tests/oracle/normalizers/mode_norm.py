"""Mode Normalization, as published: the running variance from running means of x and x^2."""

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
    modes: int = 2,
    momentum: float = 0.9,
    epsilon: float = 1e-5,
    **affine: Any,
) -> tuple[Array, dict[str, Array]]:
    """See `jaxnorm.linen.normalizers.ModeNorm`."""
    rows = x.reshape(x.shape[0], -1, x.shape[-1])
    logits = rows.mean(1) @ params["gate_kernel"] + params["gate_bias"]
    gates = np.exp(logits - logits.real.max(1, keepdims=True))
    gates = gates / gates.sum(1, keepdims=True)
    center = rows.real.mean((0, 1))  # a constant, that no digits are lost in large means
    rows = rows - center
    mean, var, new = state["mean"] - center, state["var"], dict(state)
    if train:
        share = gates / (gates.sum(0) * rows.shape[1])
        mean = np.einsum("nk,npc->kc", share, rows)
        apart = rows[:, :, None] - mean
        var = np.einsum("nk,npkc->kc", share, apart * apart)
        now = mean.real + center
        new["mean"] = momentum * state["mean"] + (1 - momentum) * now
        second = momentum * (state["var"] + _square(state["mean"], new["mean"]))
        new["var"] = second + (1 - momentum) * (var.real + _square(now, new["mean"]))
    normal = (rows[:, :, None] - mean) / np.sqrt(var + epsilon)
    y = np.einsum("nk,npkc->npc", gates, normal)
    return (y * params.get("scale", 1) + params.get("bias", 0)).reshape(x.shape), new


def _square(mean: Array, about: Array) -> Array:
    """The square of a mean about a point: second moments are taken about the new mean."""
    return (mean - about) ** 2
