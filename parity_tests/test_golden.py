"""Every implementation against the golden files."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import jaxnorm
import torchnorm
from parity_tests import golden
from parity_tests.cases import Case
from parity_tests.implementations import Gradients, Implementation
from parity_tests.implementations.plain_layers import PLAIN
from parity_tests.matrix import compare

#: Those whose backward pass adapts the gradient. From a plain gradient and the first statistics,
#: which are about 0, an optimizer cannot have all digits where a mean is larger than its spread.
DIRECT = pytest.mark.parametrize("implementation", PLAIN, ids=lambda i: i.name)


@DIRECT
@pytest.mark.parametrize("name", golden.names("dense"))
def test_dense(name: str, implementation: Implementation) -> None:
    """Forward pass and gradients are those of the file, and so are the moments."""
    file = golden.read(name)
    x, kernel, bias, delta = (file.arrays[key] for key in ("x", "kernel", "bias", "delta"))
    case = Case("golden", x, kernel, bias, delta, file.gate, file.knobs)
    with jaxnorm.neuron_mask(file.neuron_mask), torchnorm.neuron_mask(file.neuron_mask):
        result = implementation.gradients(case)
    of = replace(case, x=x[: file.counted], delta=delta[: file.counted])
    mean, sigma = implementation.moments(of)
    if file.knobs.step_size == "plain" and file.knobs.scale != "none":
        # They are absolute: the file's, but for a factor a neuron that the gradient has shown.
        sigma = sigma * np.median(file.arrays["sigma"] / sigma, axis=0)
    actual = {**result._asdict(), "mean": mean, "sigma": sigma}
    findings = [
        compare.finding(quantity, value, file.arrays[quantity], case)
        for quantity, value in actual.items()
    ]
    assert not [f for f in findings if f.miss]


@DIRECT
@pytest.mark.parametrize("name", golden.names("conv2d"))
def test_conv2d(name: str, implementation: Implementation) -> None:
    """All that the file holds of what a layer returns."""
    file = golden.read(name)
    arrays = [file.arrays[key] for key in ("x", "kernel", "bias", "delta")]
    case = Case("golden", *arrays, file.gate, file.knobs, file.op)
    result = implementation.gradients(case)._asdict()
    held = [quantity for quantity in Gradients._fields if quantity in file.arrays]
    assert {"z", "g_kernel", "g_bias"} <= set(held)
    findings = [compare.finding(q, result[q], file.arrays[q], case) for q in held]
    assert not [f for f in findings if f.miss]
