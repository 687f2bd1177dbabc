"""What must not change, bit for bit: forward pass, input gradient, the layer switched off."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from parity_tests import cases
from parity_tests.hosts import HOSTS
from parity_tests.implementations import (
    Implementation,
    JaxFunctional,
    LinenDense,
    NnxLinear,
    TorchFunctional,
    TorchModule,
)
from parity_tests.oracle import Knobs

PAIRS = pytest.mark.parametrize(("ours", "host"), HOSTS.items(), ids=lambda i: i.name)
FAMILIES = pytest.mark.parametrize("family", ["axes", "no_bias"])
DTYPES = pytest.mark.parametrize("dtype", cases.DTYPES)


@PAIRS
@FAMILIES
@DTYPES
def test_forward_and_input_gradient_are_the_hosts(
    ours: Implementation, host: Implementation, family: str, dtype: str
) -> None:
    """Whatever the rule, in every dtype."""
    case = cases.make(family, gate="silu", dtype=dtype)
    plain = host.gradients(case)
    for knobs in (Knobs(), Knobs(weighting="error", gradient="covariant", statistics_rows=8)):
        result = ours.gradients(replace(case, knobs=knobs))
        for field in ("z", "g_x"):
            mine, theirs = getattr(result, field), getattr(plain, field)
            assert mine.dtype == theirs.dtype == case.x.dtype
            np.testing.assert_array_equal(mine, theirs)


@PAIRS
@FAMILIES
@DTYPES
def test_switched_off_everything_is_the_hosts(
    ours: Implementation, host: Implementation, family: str, dtype: str
) -> None:
    """`gradient="plain"`, whatever the other knobs say; and it does make a difference."""
    case = cases.make(family, gate="silu", dtype=dtype, knobs=Knobs(weighting="error"))
    result, plain = (
        ours.gradients(replace(case, knobs=Knobs(gradient="plain"))),
        host.gradients(case),
    )
    for mine, theirs in zip(result, plain, strict=True):
        if mine is not theirs:
            assert mine.dtype == theirs.dtype
            np.testing.assert_array_equal(mine, theirs)
    assert not np.array_equal(ours.gradients(case).g_kernel, plain.g_kernel)


@FAMILIES
@DTYPES
@pytest.mark.parametrize(
    ("layer", "function"),
    [
        (LinenDense(), JaxFunctional()),
        (NnxLinear(), JaxFunctional()),
        (TorchModule(), TorchFunctional()),
    ],
    ids=lambda i: i.name,
)
def test_layers_are_the_function(
    layer: Implementation, function: Implementation, family: str, dtype: str
) -> None:
    """Layers hold parameters and no mathematics."""
    case = cases.make(family, gate="gelu_tanh", dtype=dtype)
    for mine, theirs in zip(layer.gradients(case), function.gradients(case), strict=True):
        assert (mine is None) == (theirs is None)
        np.testing.assert_array_equal(mine, theirs)
