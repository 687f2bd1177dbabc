"""What must not change, bit for bit: forward pass, input gradient, the layer switched off."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from parity_tests import cases
from parity_tests.cases import Case, Layer, geometries
from parity_tests.implementations import Implementation
from parity_tests.implementations.jax import JaxFunctional, Linen, Nnx
from parity_tests.implementations.plain_layers import PLAIN
from parity_tests.implementations.torch import TorchFunctional, TorchModule
from parity_tests.oracle import Knobs

#: Configurations in which a framework does more than its product.
LAYERS: dict[str, Layer | None] = {
    "axes": None,
    "no_bias": None,
    "conv": geometries.CONVOLUTIONS["groups, dilation"],
    "transposed, torch": geometries.TRANSPOSED["torch, groups, dilation"],
    "conv, mask": geometries.CONVOLUTIONS["mask"],
    "conv, circular": geometries.CONVOLUTIONS["circular, even window"],
    "conv, 1-d": geometries.CONVOLUTIONS["1-d, causal"],
    "transposed": geometries.TRANSPOSED["same, stride 2"],
    "transposed, circular": geometries.TRANSPOSED["circular, transposed kernel"],
    "heads": geometries.PRODUCTS["heads"],
    "general, batch": geometries.PRODUCTS["general, batch axes"],
    "conv, one-sided": geometries.CONVOLUTIONS["one-sided pads"],
    "conv, 3-d": geometries.CONVOLUTIONS["3-d"],
    "conv, batch axes": geometries.CONVOLUTIONS["two batch axes"],
    "transposed, mask": geometries.TRANSPOSED["mask, transposed kernel"],
    "transposed, torch 3-d": geometries.TRANSPOSED["torch, 3-d, no batch axis"],
    "mixed": geometries.PRODUCTS["groups first, all mixed"],
    "general": geometries.PRODUCTS["general"],
}


def _quick(name: str, dtype: str) -> bool:
    """XLA compiles every shape in every dtype anew: the rest is for `pytest -m slow`."""
    names = {"float32": tuple(LAYERS)[:11], "bfloat16": tuple(LAYERS)[:4]}
    return LAYERS[name] is None or name in names.get(dtype, ())


PAIRS = pytest.mark.parametrize(("ours", "reference"), PLAIN.items(), ids=lambda i: i.name)
NAMES = pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(name, dtype, marks=[] if _quick(name, dtype) else pytest.mark.slow)
        for name in LAYERS
        for dtype in cases.DTYPES
    ],
)


def _case(name: str, *able: Implementation, **kwargs: Any) -> Case:
    """A case of that name; skips what one of them does not have."""
    layer = LAYERS[name]
    case = cases.make(name, **kwargs) if layer is None else cases.make(layer=layer, **kwargs)
    if not all(implementation.supports(case) for implementation in able):
        pytest.skip("not an operation of this framework")
    return case


@PAIRS
@NAMES
def test_forward_and_input_gradient_are_the_frameworks(
    ours: Implementation, reference: Implementation, name: str, dtype: str
) -> None:
    """Whatever the rule, in every dtype."""
    case = _case(name, ours, reference, gate="silu", dtype=dtype)
    plain = reference.gradients(case)
    for knobs in (Knobs(), Knobs(weighting="error", gradient="standardized", statistics_rows=8)):
        result = ours.gradients(replace(case, knobs=knobs))
        for field in ("z", "g_x"):
            mine, theirs = getattr(result, field), getattr(plain, field)
            assert mine.dtype == theirs.dtype == case.x.dtype
            np.testing.assert_array_equal(mine, theirs)


@PAIRS
@NAMES
def test_switched_off_everything_is_the_frameworks(
    ours: Implementation, reference: Implementation, name: str, dtype: str
) -> None:
    """`gradient="plain"`, whatever the other knobs say; and it does make a difference."""
    case = _case(name, ours, reference, gate="silu", dtype=dtype, knobs=Knobs(weighting="error"))
    result, plain = (
        ours.gradients(replace(case, knobs=Knobs(gradient="plain"))),
        reference.gradients(case),
    )
    for mine, theirs in zip(result, plain, strict=True):
        if mine is not theirs:
            assert mine.dtype == theirs.dtype
            np.testing.assert_array_equal(mine, theirs)
    assert not np.array_equal(ours.gradients(case).g_kernel, plain.g_kernel)


@NAMES
@pytest.mark.parametrize(
    ("layer", "function"),
    [
        (Linen(), JaxFunctional()),
        (Nnx(), JaxFunctional()),
        (TorchModule(), TorchFunctional()),
    ],
    ids=lambda i: i.name,
)
def test_layers_are_the_function(
    layer: Implementation, function: Implementation, name: str, dtype: str
) -> None:
    """Layers hold parameters and no mathematics."""
    case = _case(name, layer, gate="gelu_tanh", dtype=dtype)
    for mine, theirs in zip(layer.gradients(case), function.gradients(case), strict=True):
        assert (mine is None) == (theirs is None)
        np.testing.assert_array_equal(mine, theirs)
