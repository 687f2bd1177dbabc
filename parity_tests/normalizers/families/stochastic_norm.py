"""Stochastic normalization."""

import numpy as np

from parity_tests.normalizers.family import Arrays, Family, Knobs
from parity_tests.oracle.normalizers import stochastic_norm


def _noise(rng: np.random.Generator, shape: tuple[int, ...], knobs: Knobs) -> Arrays:
    u = rng.uniform(0.8, 1.2, shape[-1])
    return {"noise": np.stack([u, rng.normal(size=shape[-1]) / 8])}


FAMILIES = [
    Family(
        "StochasticNorm",
        stochastic_norm.forward,
        noise=_noise,
        variants=({}, {"statistics": "batch", "epsilon": 1e-3, "momentum": 0.8}),
    )
]
