"""Multiplicative noise on activations: it has the layout of x, so x has no space."""

import numpy as np

from parity_tests.normalizers.family import Arrays, Family, Knobs, nothing
from parity_tests.oracle.normalizers import multiplicative_noise


def _noise(rng: np.random.Generator, shape: tuple[int, ...], knobs: Knobs) -> Arrays:
    return {"noise": rng.binomial(1, 0.5, shape) * 2.0}


FAMILIES = [
    Family(
        "MultiplicativeNoise",
        multiplicative_noise.forward,
        params=nothing,
        state=nothing,
        kinds=("matrix",),
        noise=_noise,
        modes=False,
    )
]
