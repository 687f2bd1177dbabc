"""Switchable Normalization."""

import numpy as np

from parity_tests.normalizers.family import KINDS, Arrays, Family, Knobs, affine, nothing, running
from parity_tests.oracle.normalizers import switchable_norm

_ALL = ("instance", "layer", "batch")


def _params(rng: np.random.Generator, channels: int, knobs: Knobs) -> Arrays:
    weights = len(knobs.get("statistics", _ALL))
    return {
        **affine(rng, channels, knobs),
        "mean_weight": rng.normal(size=weights),
        "var_weight": rng.normal(size=weights),
    }


def _family(variants: tuple[Knobs, ...], kinds: tuple[str, ...], **settings) -> Family:
    return Family(
        "SwitchableNorm",
        switchable_norm.forward,
        params=_params,
        variants=variants,
        kinds=kinds,
        **settings,
    )


FAMILIES = (
    _family(
        (
            {},
            {"unbiased": True, "momentum": 0.5, "epsilon": 0.1},
            {"statistics": ("batch", "instance"), "use_scale": False, "use_bias": False},
        ),
        tuple(kind for kind in KINDS if kind != "matrix"),
    ),
    _family(({"statistics": ("instance", "layer")},), ("one_sample",), state=nothing),
    _family(({"statistics": ("layer", "batch")},), ("matrix",), state=running),
    _family(({"statistics": ("layer", "batch"), "unbiased": True},), ("matrix",), state=running),
)
