"""Mixture Normalization."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

import numpy as np

from parity_tests.oracle.activations import Array

#: weight [K], mean [K, C], var [K, C].
Mixture = tuple[Array, Array, Array]


def forward(
    x: Array,
    params: Mapping[str, Array],
    state: Mapping[str, Array],
    *,
    train: bool,
    components: int = 2,
    steps: int = 5,
    floor: float = 1e-3,
    responsibility_gradient: bool = False,
    momentum: float = 0.99,
    epsilon: float = 1e-5,
    seeds: Array | None = None,
    **affine: Any,
) -> tuple[Array, dict[str, Array]]:
    """See `jaxnorm.linen.normalizers.MixtureNorm`."""
    rows = x.reshape(-1, x.shape[-1])
    if train:
        m = rows.mean(0)
        z = rows - m
        v = (z * z).mean(0)
        if seeds is None:
            scores = [NormalDist().inv_cdf((k + 0.5) / components) for k in range(components)]
            # No root of 0: its derivative is endless.
            root = np.sqrt(np.where(v.real > 0, v, 1)) * (v.real > 0)
            means = np.array(scores)[:, None] * root
        else:
            means = seeds - m
        mixture = (np.full(components, 1 / components), means, np.broadcast_to(v, means.shape))
        for _ in range(steps):
            mixture = _maximize(z, _posterior(z, *mixture, v + epsilon, floor))
        r = _posterior(z, *mixture, v + epsilon, floor)
        if not responsibility_gradient:
            r = r.real
        weight, mean, var = _maximize(z, r)
        batch = {"weight": weight, "mean": mean + m, "var": var}
        new = {k: momentum * state[k] + (1 - momentum) * batch[k].real for k in state}
    else:
        weight, mean, var = state["weight"], state["mean"], state["var"]
        m = weight @ mean
        z, mean = rows - m, mean - m
        v = weight @ (var + mean * mean)
        r = _posterior(z, weight, mean, var, v + epsilon, floor)
        new = dict(state)
    apart = (z - mean[:, None]) / np.sqrt(var + epsilon)[:, None]
    xhat = ((r / np.sqrt(weight)[:, None])[:, :, None] * apart).sum(0)
    return (xhat * params.get("scale", 1) + params.get("bias", 0)).reshape(x.shape), new


def _posterior(
    z: Array, weight: Array, mean: Array, var: Array, unit: Array, floor: float
) -> Array:
    """p(k | sample), [K, M]."""
    relative = (var / unit + floor)[:, None]
    square = (z - mean[:, None]) ** 2 / (unit * relative)
    log = np.log(weight)[:, None] - (square + np.log(relative)).sum(-1) / 2
    p = np.exp(log - log.real.max(0))
    return p / p.sum(0)


def _maximize(z: Array, r: Array) -> Mixture:
    """The mixture under which the samples with these responsibilities are likeliest."""
    nu = r / r.sum(1, keepdims=True)
    mean = nu @ z
    var = np.stack([n @ (z - m) ** 2 for n, m in zip(nu, mean, strict=True)])
    return r.mean(1), mean, var
