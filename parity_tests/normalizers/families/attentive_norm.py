"""Attentive Normalization."""

import numpy as np

from parity_tests.normalizers.family import KINDS, TORCH_NAMES, Arrays, Family, Knobs
from parity_tests.oracle import Array
from parity_tests.oracle.normalizers import attentive_norm


def _params(rng: np.random.Generator, channels: int, knobs: Knobs) -> Arrays:
    mixtures = knobs["mixtures"]
    return {
        "scale": rng.normal(1, 0.3, (mixtures, channels)),
        "bias": rng.normal(size=(mixtures, channels)),
        "projection": rng.normal(size=(channels, mixtures)),
        "attention_scale": rng.normal(size=mixtures),
        "attention_bias": rng.normal(size=mixtures),
    }


def _state(rng: np.random.Generator, channels: int, knobs: Knobs) -> Arrays:
    mixtures = knobs["mixtures"]
    return {
        "mean": rng.normal(size=channels),
        "var": rng.uniform(0.5, 2.0, channels),
        "attention_mean": rng.normal(size=mixtures),
        "attention_var": rng.uniform(0.5, 2.0, mixtures),
    }


def _transposed(array: Array) -> Array:
    return array.T


FAMILIES = (
    Family(
        "AttentiveNorm",
        attentive_norm.forward,
        params=_params,
        state=_state,
        variants=(
            {"mixtures": 3},
            {"mixtures": 2, "attention": "softmax", "unbiased": True, "convention": "torch"},
            {"mixtures": 3, "attention": "sigmoid", "momentum": 0.5, "epsilon": 0.1},
        ),
        kinds=tuple(kind for kind in KINDS if kind != "one_sample"),
        torch_names={
            **TORCH_NAMES,
            "attention_scale": "attention_weight",
            "attention_mean": "running_attention_mean",
            "attention_var": "running_attention_var",
        },
        torch_layouts={"projection": (_transposed, _transposed)},
    ),
)
