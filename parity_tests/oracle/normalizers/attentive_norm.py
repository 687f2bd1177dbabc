"""Attentive Normalization."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from parity_tests.oracle import Array
from parity_tests.oracle.normalizers.iebn import batch_norm


def forward(
    x: Array,
    params: Mapping[str, Array],
    state: Mapping[str, Array],
    *,
    train: bool,
    mixtures: int,
    momentum: float = 0.9,
    epsilon: float = 1e-5,
    attention: str = "hard_sigmoid",
    unbiased: bool = False,
    convention: str = "flax",
) -> tuple[Array, dict[str, Any]]:
    """Output and new state."""
    knobs = {"train": train, "momentum": momentum, "epsilon": epsilon, "convention": convention}
    y, mean, var = batch_norm(x, state["mean"], state["var"], **knobs)
    flat = x.reshape(x.shape[0], -1, x.shape[-1])
    n = flat.shape[1]
    pooled = flat.mean(1)
    spread = ((flat - pooled[:, None]) ** 2).sum(1) / (n - 1 if unbiased else n)
    pooled = pooled / np.sqrt(spread + 1e-3)
    seen, attention_mean, attention_var = batch_norm(
        pooled @ params["projection"], state["attention_mean"], state["attention_var"], **knobs
    )
    logits = seen * params["attention_scale"] + params["attention_bias"]
    weights = _ATTENTIONS[attention](logits)
    space = (slice(None), *(None,) * (x.ndim - 2))
    new = {"mean": mean, "var": var}
    new |= {"attention_mean": attention_mean, "attention_var": attention_var}
    return y * (weights @ params["scale"])[space] + (weights @ params["bias"])[space], new


def _hard_sigmoid(z: Array) -> Array:
    return np.where(z.real < -3, 0, np.where(z.real > 3, 1, (z + 3) / 6))


def _softmax(z: Array) -> Array:
    e = np.exp(z - z.real.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


_ATTENTIONS = {
    "hard_sigmoid": _hard_sigmoid,
    "sigmoid": lambda z: 1 / (1 + np.exp(-z)),
    "softmax": _softmax,
}
