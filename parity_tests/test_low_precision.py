"""bfloat16 and float16: the yardstick is the textbook formula in the same dtype, not a number."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from parity_tests import cases
from parity_tests.cases import Case
from parity_tests.implementations import Gradients, Implementation
from parity_tests.implementations.jax import JaxFunctional
from parity_tests.implementations.plain_layers import PLAIN
from parity_tests.implementations.torch import TorchFunctional, to_numpy, to_tensor
from parity_tests.matrix import compare
from parity_tests.oracle import Knobs
from parity_tests.tolerances import GATE, LOW_PRECISION_FACTOR, ROUNDING, TEXTBOOK


def _textbook(x: Any, kernel: Any, bias: Any, delta: Any, knobs: Knobs) -> tuple[Any, ...]:
    """The rule for ReLU or uniform weights as one would write it down, in the dtype of its arrays.

    Two passes, centered sums: the best that can be done without more digits. Written with operators
    that JAX and torch share; every operation rounds.
    """
    z = x @ kernel + (0 if bias is None else bias[None, :])
    uniform = (z == z) * (x[:1, :1] * 0 + 1)
    s = uniform if knobs.weighting == "uniform" else (z > 0) * uniform
    mass, squares = s.sum(0), (s * s).sum(0)
    trust = mass * mass / (mass * mass + knobs.shrinkage * squares)
    layer_mean = x.mean(0) if bias is not None else 0 * x[0]
    centered = x - layer_mean[None, :]
    own = (centered.T @ s / mass[None, :]) if bias is not None else 0 * kernel
    mean = layer_mean[:, None] + trust[None, :] * own
    deviation = centered[:, :, None] - own[None, :, :]
    spread = (deviation * deviation * s[:, None, :]).sum(0) / mass[None, :]
    prior = (centered * centered).mean(0)[:, None]
    rest = 1 - trust[None, :]
    variance = trust[None, :] * spread + rest * prior + trust[None, :] * rest * own * own
    square = variance + knobs.damping * variance.mean(0)[None, :] + knobs.epsilon
    varies = (x != (x[:1] if bias is not None else 0 * x[:1])).any(0)[:, None] & (square == square)
    size = (square * varies / varies.sum(0)[None, :]).sum(0)[None, :]
    product = ((x[:, :, None] - mean[None, :, :]) * delta[:, None, :]).sum(0)
    g_kernel, g_bias = product * (size / square), delta.sum(0)
    if bias is None:
        return z, delta @ kernel.T, g_kernel, None
    return z, delta @ kernel.T, g_kernel, g_bias - (mean * g_kernel).sum(0)


def _naive(case: Case, implementation: Implementation) -> Gradients:
    """The textbook formula, computed by the framework of the implementation."""
    arrays = (case.x, case.kernel, case.bias, case.delta)
    if isinstance(implementation, JaxFunctional):
        given, back = jnp.asarray, np.asarray
    else:
        given, back = to_tensor, to_numpy
    x, kernel, bias, delta = (None if a is None else given(a) for a in arrays)
    result = _textbook(x, kernel, bias, delta, case.knobs)
    return Gradients._make(None if a is None else back(a) for a in result)


FAMILIES, WEIGHTINGS = ("scales", "constant", "nearly_dead", "no_bias"), ("gate", "uniform")


def _combinations() -> Iterator[Any]:
    """Everything for the functions; layers call them, and only have to leave the dtype alone."""
    for combination in itertools.product(PLAIN, FAMILIES, WEIGHTINGS, ROUNDING):
        implementation, family, weighting, dtype = combination
        layer = not implementation.name.endswith("functional")
        wide = layer and (family, weighting) != ("scales", "gate")
        yield pytest.param(
            *combination,
            marks=[pytest.mark.slow] * wide,
            id=f"{dtype}-{weighting}-{family}-{implementation.name}",
        )


# Those whose backward pass adapts the gradient. An optimizer gets it rounded to the dtype of the
# parameter, before it can take the mean's share away.
@pytest.mark.parametrize(("implementation", "family", "weighting", "dtype"), [*_combinations()])
def test_no_worse_than_twice_the_textbook(
    implementation: Implementation, family: str, weighting: str, dtype: str
) -> None:
    """Every quantity, and in the dtype of its parameter."""
    for seed in range(3):
        case = cases.make(family, seed=seed, dtype=dtype, knobs=Knobs(weighting=weighting))
        ours, naive = implementation.gradients(case), _naive(case, implementation)
        for quantity in Gradients._fields:
            mine, theirs, right = (getattr(a, quantity) for a in (ours, naive, case.expected))
            if right is None:
                assert mine is None
                continue
            assert mine.dtype == theirs.dtype == case.x.dtype
            error, yardstick = (compare.error_of(quantity, a, right, case) for a in (mine, theirs))
            assert yardstick < TEXTBOOK, "a broken yardstick"
            assert error <= LOW_PRECISION_FACTOR * yardstick + ROUNDING[dtype], quantity


@pytest.mark.parametrize("kind", [JaxFunctional, TorchFunctional])
@pytest.mark.parametrize("dtype", ROUNDING)
def test_statistics_are_in_float32(kind: type[Implementation], dtype: str) -> None:
    """Moments of low-precision inputs have float32's digits."""
    case = cases.make(dtype=dtype)
    for quantity, value in kind().moments(case)._asdict().items():
        assert value.dtype == case.statistics_dtype
        right = getattr(case.expected_moments, quantity)
        assert compare.error_of(quantity, value, right, case) <= GATE["float32"]
