"""Online Normalization, whose backward pass has a state of its own."""

from typing import Any

import numpy as np

from parity_tests.normalizers.family import (
    TORCH_NAMES,
    Arrays,
    Family,
    Knobs,
    running,
    torch_arguments,
)
from parity_tests.oracle.normalizers import online_norm


def _state(rng: np.random.Generator, channels: int, knobs: Knobs) -> Arrays:
    control = {name: rng.normal(size=channels) for name in ("gradient", "projection")}
    return {**running(rng, channels, knobs), **control}


def _arguments(knobs: Knobs) -> dict[str, Any]:
    arguments = torch_arguments(knobs)
    if "backward_momentum" in arguments:
        arguments["backward_momentum"] = 1 - arguments["backward_momentum"]
    return arguments


FAMILIES = (
    Family(
        "OnlineNorm",
        online_norm.forward,
        backward=online_norm.backward,
        backward_stats=("gradient", "projection"),
        state=_state,
        variants=(
            {"momentum": 0.9, "backward_momentum": 0.8, "clamp": 2.0},
            {},
            {"guard": "layer_scaling", "momentum": 0.9, "epsilon": 0.1},
            {"guard": None, "backward_momentum": 0.7, "use_scale": False, "use_bias": False},
        ),
        torch_names={
            **TORCH_NAMES,
            "gradient": "running_gradient",
            "projection": "running_projection",
        },
        torch_arguments=_arguments,
    ),
)
