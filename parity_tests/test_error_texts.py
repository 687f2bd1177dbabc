"""What the two packages say about bad input: every check, with the same arguments, word for word.

Where a word must differ, it is in `DIFFERENT`: JAX calls it the kernel, PyTorch the weight, and the
layouts and the remedies are each framework's.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch

import jaxnorm.checks
import jaxnorm.normalizers.checks
import torchnorm.checks
import torchnorm.normalizers.checks
from jaxnorm.normalizers.checks import SHARE


def _tensors(value: Any) -> Any:
    """The arguments as PyTorch has them: tensors for arrays, wherever they are."""
    if isinstance(value, dict):
        return {name: _tensors(each) for name, each in value.items()}
    if type(value) is tuple:
        return tuple(map(_tensors, value))
    return torch.tensor(value) if isinstance(value, np.ndarray) else value


X = np.ones((6, 3), np.float32)
#: Check -> arguments that it refuses, in order or by name; (JAX's, PyTorch's) where the layouts are
#: in them.
REFUSED: dict[str, list[Any]] = {
    "check_floating": [
        *({"x": X.astype(dtype)} for dtype in ("int32", "bool", "complex64")),
        {"x": X, "bias": X.astype("int64")},
    ],
    "check_rule": [("neuron",), (None,)],
    "check_inputs": [((6, 2), 3), ((), 3)],
    "check_matrix": [("kernel", (3,), "[I, O]"), ("kernel", (1, 2, 3), "[I, O]")],
    "check_groups": [(3, 4, 6), (0, 4, 4), (2, 4, 5)],
    "check_told": [(None, None), ("relu", X)],
    "check_slope": [((6, 3), (6, 4))],
    "check_bias": [((3,), (4,)), ((), (4,))],
    "check_sample_weight": [((5, 4), (6, 3)), ((4,), (6, 3))],
    "check_statistics": [({"a": X}, {"a": X[:2]}), ({"a": X}, {"b": X}), ({}, {"a": X})],
    "check_samples": [(0, True), (0, False), (1, True)],
}
LAYOUTS: dict[str, list[tuple[tuple[Any, ...], tuple[Any, ...]]]] = {
    "check_window": [(((3, 4),), ((3, 4), 1))],
    "check_images": [
        (((2, 7, 5), (3, 4, 6), 1), ((2, 5, 7), (6, 4, 3), 1)),
        (((), (3, 4, 6), 1), ((), (6, 4, 3), 1)),
        (((7,), (3, 3, 4, 6), 1), ((7,), (6, 4, 3, 3), 1)),
    ],
}
#: The same of `normalizers.checks`.
OF_NORMALIZERS: dict[str, list[Any]] = {
    "check_knob": [("momentum", value, SHARE) for value in ("slow", True, 1.5, np.nan)],
    "check_count": [("steps", 1.5, 0), ("steps", True, 0), ("steps", -1, 0)],
    "check_choice": [("guard", "clip", ("a", None))],
    "check_given": [("noise", (3, 4), (2, 4))],
    "check_rank": [((4,),), ((4, 4), 3)],
    "check_channels": [((6, 3), 1, 4)],
    "check_features": [((6, 3), (4,)), ((3,), (6, 3))],
    "check_values": [((1, 4), 1), ((1, 4, 4), 1, "value per group", "fewer groups")],
}
#: The words of JAX -> those of PyTorch.
DIFFERENT = {
    "kernel: got": "weight: got",
    "at least three axes [*window, C, O]": "3 axes [O, C, *window]",
    "(2, 7, 5)": "(2, 5, 7)",
    "(3, 4, 6)": "(6, 4, 3)",
    "(3, 3, 4, 6)": "(6, 4, 3, 3)",
    "make new ones with init_statistics": "make the layer anew",
}
#: Of what only one of them has: masks of kernels, any linear operation, lazily shaped layers, masks
#: of experts; those of samples are compared in `test_neuron_mask`.
ONLY = {"check_mask", "check_linear", "check_space", "check_counts"}
ONLY |= {"check_neuron_mask", "check_fits"}
#: Nested and sparse tensors are PyTorch's.
ONLY |= {"check_dense"}
#: One has arguments that go by name, see `test_layers_with_statistics`; the other only JAX has.
ONLY |= {"check_positions", "check_tracked"}


def _text(package: Any, name: str, arguments: Any) -> tuple[type, str]:
    checks = package.normalizers.checks if name in OF_NORMALIZERS else package.checks
    check = getattr(checks, name)
    with pytest.raises((TypeError, ValueError)) as caught:
        check(**arguments) if isinstance(arguments, dict) else check(*arguments)
    return caught.type, str(caught.value)


def _in_torch(text: str) -> str:
    for jax, other in DIFFERENT.items():
        text = text.replace(jax, other)
    return text


def test_every_check_is_compared() -> None:
    for package in (jaxnorm, torchnorm):
        for module, compared in (
            (package.checks, REFUSED.keys() | LAYOUTS.keys()),
            (package.normalizers.checks, OF_NORMALIZERS.keys()),
        ):
            names = {n for n, _ in inspect.getmembers(module, inspect.isfunction)}
            checks = {name for name in names if name.startswith("check_")}
            assert checks - ONLY == compared


@pytest.mark.parametrize("name", REFUSED | OF_NORMALIZERS)
def test_same_words(name: str) -> None:
    for arguments in {**REFUSED, **OF_NORMALIZERS}[name]:
        kind, text = _text(jaxnorm, name, arguments)
        words = text if name == "check_matrix" else _in_torch(text)  # it is told the name
        assert (kind, words) == _text(torchnorm, name, _tensors(arguments))
        assert "got" in text
        assert "expected" in text


@pytest.mark.parametrize("name", LAYOUTS)
def test_same_words_about_layouts(name: str) -> None:
    for one, other in LAYOUTS[name]:
        kind, text = _text(jaxnorm, name, one)
        assert (kind, _in_torch(text)) == _text(torchnorm, name, other)
