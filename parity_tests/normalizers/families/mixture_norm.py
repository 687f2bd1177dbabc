"""Mixture Normalization."""

import numpy as np

from parity_tests.normalizers.family import KINDS, TORCH_NAMES, Arrays, Family, Knobs
from parity_tests.oracle.normalizers import mixture_norm


def _state(rng: np.random.Generator, channels: int, knobs: Knobs) -> Arrays:
    shape = (knobs.get("components", 2), channels)
    weight = rng.uniform(0.5, 1.0, shape[0])
    return {
        "weight": weight / weight.sum(),
        "mean": rng.normal(size=shape),
        "var": rng.uniform(0.5, 2.0, shape),
    }


FAMILIES = [
    Family(
        "MixtureNorm",
        mixture_norm.forward,
        state=_state,
        # Without space: see test_mixtures.
        kinds=tuple(kind for kind in KINDS if kind != "matrix"),
        variants=(
            {},
            {"components": 3, "steps": 2, "responsibility_gradient": True},
            {
                "components": 1,
                "epsilon": 1e-3,
                "momentum": 0.8,
                "use_scale": False,
                "use_bias": False,
            },
        ),
        torch_names={**TORCH_NAMES, "weight": "running_weight"},
    )
]
