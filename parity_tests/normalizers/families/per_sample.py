"""GroupNorm, LayerNorm, InstanceNorm and RMSNorm in both conventions."""

from __future__ import annotations

from typing import Any

import numpy as np

from parity_tests.normalizers.family import (
    KINDS,
    Arrays,
    Family,
    Knobs,
    affine,
    nothing,
    running,
    torch_arguments,
)
from parity_tests.oracle.normalizers.per_sample import (
    group_norm,
    instance_norm,
    layer_norm,
    rms_norm,
)


def _of_features(knobs: Knobs) -> dict[str, Any]:
    """LayerNorm and RMSNorm call it so."""
    arguments = torch_arguments(knobs)
    if "affine" in arguments:
        arguments["elementwise_affine"] = arguments.pop("affine")
    return arguments


def _tracked(rng: np.random.Generator, channels: int, knobs: Knobs) -> Arrays:
    return running(rng, channels, knobs) if knobs.get("track_running_stats") else {}


def _scale(rng: np.random.Generator, channels: int, knobs: Knobs) -> Arrays:
    return {"scale": affine(rng, channels, knobs)["scale"]}


def _in_double(knobs: Knobs) -> dict[str, Any]:
    """PyTorch's epsilon is that of the dtype, which an nnx layer knows from its parameters."""
    return {**knobs, **({"param_dtype": "float64"} if knobs["convention"] == "torch" else {})}


FAMILIES = [
    Family(
        "GroupNorm",
        group_norm,
        state=nothing,
        variants=(
            {"num_groups": 2, "convention": "torch"},
            {"num_groups": 1, "convention": "flax"},
            {"num_groups": 4, "convention": "torch", "epsilon": 1e-2},
            {"num_groups": 2, "convention": "flax", "use_scale": False, "use_bias": False},
        ),
        channels=8,
        torch_layer=lambda kind, channels, arguments: kind(num_channels=channels, **arguments),
        modes=False,
    ),
    Family(
        "LayerNorm",
        layer_norm,
        state=nothing,
        variants=(
            {"convention": "torch"},
            {"convention": "flax"},
            {"convention": "flax", "epsilon": 1e-2, "use_scale": False, "use_bias": False},
        ),
        torch_arguments=_of_features,
        torch_channels=-1,
        modes=False,
    ),
    Family(
        "RMSNorm",
        rms_norm,
        params=_scale,
        state=nothing,
        variants=({"convention": "flax"}, {"convention": "torch"}),
        linen_arguments=_in_double,
        torch_arguments=_of_features,
        torch_channels=-1,
        modes=False,
    ),
    Family(
        "InstanceNorm",
        instance_norm,
        state=_tracked,
        variants=(
            {"convention": "flax", "track_running_stats": True},
            {"convention": "torch", "track_running_stats": True, "use_scale": True,
             "use_bias": True},
            {"convention": "flax", "epsilon": 1e-2},
            {"convention": "torch", "use_scale": False, "use_bias": False},
        ),
        kinds=tuple(kind for kind in KINDS if kind not in ("one_pixel", "matrix")),
    ),
]  # fmt: skip
