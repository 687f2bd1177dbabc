"""BatchNorm in both conventions."""

from __future__ import annotations

import numpy as np

from parity_tests.normalizers.family import TORCH_NAMES, Arrays, Family, Knobs, running
from parity_tests.oracle.batch_norm import forward


def _state(rng: np.random.Generator, channels: int, knobs: Knobs) -> Arrays:
    """As of any that has one; with a counter if it averages over all batches."""
    count: Arrays = {"count": np.array(2)} if knobs.get("momentum", 0.0) is None else {}
    return {**running(rng, channels, knobs), **count}


FAMILIES = [
    Family(
        "BatchNorm",
        forward,
        state=_state,
        variants=(
            {"convention": "torch"},
            {"convention": "flax"},
            {"convention": "flax", "momentum": 0.5, "epsilon": 1e-2},
            {"convention": "torch", "momentum": None},
            {"convention": "flax", "momentum": None, "use_scale": False, "use_bias": False},
        ),
        torch_names={**TORCH_NAMES, "count": "num_batches_tracked"},
    )
]
