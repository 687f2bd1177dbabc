"""Instance Enhancement Batch Normalization."""

import numpy as np

from parity_tests.normalizers.family import TORCH_NAMES, Arrays, Family, Knobs, affine
from parity_tests.oracle.normalizers import iebn


def _params(rng: np.random.Generator, channels: int, knobs: Knobs) -> Arrays:
    return {
        **affine(rng, channels, knobs),
        "attention_scale": rng.normal(size=channels),
        "attention_bias": rng.normal(size=channels),
    }


FAMILIES = (
    Family(
        "InstanceEnhancementBatchNorm",
        iebn.forward,
        params=_params,
        variants=(
            {},
            {"convention": "torch", "momentum": 0.5, "epsilon": 0.1},
            {"use_scale": False, "use_bias": False},
        ),
        torch_names={**TORCH_NAMES, "attention_scale": "attention_weight"},
    ),
)
