"""Mode Normalization."""

import numpy as np

from parity_tests.normalizers.family import TORCH_NAMES, Arrays, Family, Knobs, affine
from parity_tests.oracle.normalizers import mode_norm


def _params(rng: np.random.Generator, channels: int, knobs: Knobs) -> Arrays:
    modes = knobs.get("modes", 2)
    kernel = rng.normal(size=(channels, modes)) / 2
    return {
        **affine(rng, channels, knobs),
        # A large mean that all channels share does not open one gate alone.
        "gate_kernel": kernel - kernel.mean(0),
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
        variants=({}, {"modes": 3, "epsilon": 1e-3, "momentum": 0.6}),
        torch_names={**TORCH_NAMES, "gate_kernel": "gate_weight"},
        torch_layouts={"gate_kernel": (np.transpose, np.transpose)},
    )
]
