"""Batch Renormalization."""

import numpy as np

from parity_tests.normalizers.family import TORCH_NAMES, Arrays, Family, Knobs
from parity_tests.oracle.normalizers import batch_renorm


def _state(rng: np.random.Generator, channels: int, knobs: Knobs) -> Arrays:
    """In the middle of the schedule, so that some channels are at its limits."""
    return {
        "mean": rng.normal(size=channels),
        "std": rng.uniform(0.2, 2.0, channels),
        "steps": np.array(round(9000 * knobs.get("schedule_scale", 1.0))),
    }


FAMILIES = (
    Family(
        "BatchRenorm",
        batch_renorm.forward,
        state=_state,
        variants=(
            {},
            {"momentum": 0.5, "epsilon": 0.1, "schedule_scale": 0.01},
            {"schedule_scale": 4.0, "use_scale": False, "use_bias": False},
        ),
        torch_names={**TORCH_NAMES, "std": "running_std", "steps": "num_batches_tracked"},
    ),
)
