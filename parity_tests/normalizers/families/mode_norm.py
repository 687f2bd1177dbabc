"""Mode Normalization."""

import numpy as np

from parity_tests.normalizers.family import KINDS, TORCH_NAMES, Arrays, Family, Knobs, affine
from parity_tests.oracle.normalizers import mode_norm


def _params(rng: np.random.Generator, channels: int, knobs: Knobs) -> Arrays:
    modes = knobs.get("modes", 2)
    return {
        **affine(rng, channels, knobs),
        "gate_kernel": rng.normal(size=(channels, modes)) / 2,
        "gate_bias": rng.normal(size=modes) / 2,
    }


def _state(rng: np.random.Generator, channels: int, knobs: Knobs) -> Arrays:
    shape = (knobs.get("modes", 2), channels)
    return {"mean": rng.normal(size=shape), "var": rng.uniform(0.5, 2.0, shape)}


FAMILIES = [
    Family(
        "ModeNorm",
        mode_norm.forward,
        params=_params,
        state=_state,
        # A gate that reads a large mean is open or shut: see test_mixtures for those.
        kinds=tuple(kind for kind in KINDS if kind != "large_mean"),
        variants=({}, {"modes": 3, "epsilon": 1e-3, "momentum": 0.6}),
        torch_names={**TORCH_NAMES, "gate_kernel": "gate_weight"},
        torch_layouts={"gate_kernel": (np.transpose, np.transpose)},
    )
]
