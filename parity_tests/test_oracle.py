"""The oracle against numbers worked out by hand, the golden files, and calculus."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from parity_tests import cases, golden, oracle
from parity_tests.oracle import Knobs
from parity_tests.tolerances import DERIVATIVE, GATE, VISIBLE, Relief, slice_error

needs_golden = pytest.mark.skipif(
    not golden.names("dense"), reason=f"no golden files in {golden.folder()}; set JAXNORM_GOLDEN"
)

# Two samples, two inputs, two neurons; the second neuron sees the second sample only.
X = np.array([[0.0, 0.0], [2.0, 4.0]])
KERNEL = np.array([[1.0, 1.0], [1.0, 1.0]])
BIAS = np.array([1.0, -1.0])
DELTA = np.array([[1.0, 1.0], [3.0, 2.0]])
BARE = Knobs(shrinkage=0.0, damping=0.0, epsilon=0.0)


def test_by_hand() -> None:
    """Forward pass, moments and gradients of a layer small enough for a sheet of paper."""
    layer = oracle.dense(X, KERNEL, BIAS, DELTA, "relu", BARE)
    np.testing.assert_array_equal(layer.z, [[1, -1], [7, 5]])
    np.testing.assert_array_equal(layer.g_x, [[2, 2], [5, 5]])
    np.testing.assert_array_equal(layer.mean, [[1, 2], [2, 4]])
    np.testing.assert_array_equal(layer.sigma, [[1, 1], [2, 1]])  # no variance in one sample: 1
    np.testing.assert_array_equal(layer.g_kernel, [[2, -2], [1, -4]])
    np.testing.assert_array_equal(layer.g_bias, [4 - 1 * 2 - 2 * 1, 3 + 2 * 2 + 4 * 4])


def test_by_hand_covariant() -> None:
    """Divided by sigma once, the bias left alone."""
    layer = oracle.dense(X, KERNEL, BIAS, DELTA, "relu", replace(BARE, gradient="covariant"))
    np.testing.assert_array_equal(layer.g_kernel, [[2, -2], [2, -4]])
    np.testing.assert_array_equal(layer.g_bias, [4, 3])


def test_by_hand_shrunk_and_damped() -> None:
    """One pseudo-sample against one sample: half the neuron's mean, half the layer's."""
    knobs = Knobs(shrinkage=1.0, damping=2.0, epsilon=3.0)
    mean, sigma, *_ = oracle.moments(X, np.array([[0.0], [7.0]]), knobs)  # in any unit of s
    np.testing.assert_array_equal(mean, [[1.5], [3.0]])
    # Variances 3/4 and 3: half of 1 and 4, and a quarter of the squared offsets 1 and 4.
    assert slice_error(sigma**2, [[0.75 + 3.75 + 3], [3 + 3.75 + 3]]) <= GATE["float64"]


def test_by_hand_without_bias() -> None:
    """Nothing can absorb a mean: second moments about zero, and the scale alone."""
    layer = oracle.dense(X, KERNEL, None, DELTA, None, BARE)
    np.testing.assert_array_equal(layer.mean, np.zeros((2, 2)))
    assert slice_error(layer.sigma**2, [[2, 2], [8, 8]], axes=(0, 1)) <= GATE["float64"]
    assert layer.g_bias is None


def test_dead_neuron_has_the_moments_of_the_layer() -> None:
    """No sample, no own statistics: exactly those of uniform weights."""
    dead, uniform = (oracle.moments(X, np.full((2, 1), s), Knobs()) for s in (0.0, 1.0))
    for mine, theirs in zip(dead, uniform, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("gate", oracle.GATES)
def test_derivatives(gate: str) -> None:
    """Every closed form against a central difference of its activation, off the kinks."""
    activation, derivative = oracle.GATES[gate]
    step = DERIVATIVE.step
    z = np.linspace(-7.3, 7.1, 400)
    for kink in (*cases.KINKS.get(gate, ()), 0.0):
        z = z[np.abs(z - kink) > step]
    difference = (activation(z + step) - activation(z - step)) / (2 * step)
    assert slice_error(derivative(z), difference, axes=()) <= DERIVATIVE.gate


@needs_golden
@pytest.mark.parametrize("name", [*golden.names("dense"), *golden.names("conv2d")])
def test_golden(name: str) -> None:
    """Every array in every golden file; no relief for large means."""
    file = golden.read(name)
    op = partial(oracle.conv2d, **file.geometry) if name in golden.names("conv2d") else oracle.dense
    a = file.arrays
    layer = op(a["x"], a["kernel"], a["bias"], a["delta"], file.gate, file.knobs)
    kinds = {"z": "z", "g_x": "g_x", "g_kernel": "g_kernel", "g_bias": "g_bias", "mean": "mean"}
    for key, field in {**kinds, "sigma": "sigma"}.items():
        if key in a:
            axes = () if a[key].ndim == 1 else (-1,)
            assert slice_error(getattr(layer, field), a[key], axes=axes) <= GATE["float64"], key


@pytest.mark.parametrize("geometry", [{}, {"stride": 2}, {"dilation": 2, "groups": 2}])
def test_convolution_is_linear_and_its_input_gradient_the_adjoint(geometry: dict[str, int]) -> None:
    """<delta, conv(x)> = <g_x, x>: what the golden files do not hold."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 7, 6, 4))
    kernel = rng.standard_normal((3, 3, 4 // geometry.get("groups", 1), 6))
    shape = {2: (2, 4, 3, 6)}.get(geometry.get("stride", 1), (2, 7, 6, 6))
    around = geometry.get("dilation", 1)
    pad = ((around, around), (around, around))
    delta = rng.standard_normal(shape)
    layer = oracle.conv2d(x, kernel, None, delta, "relu", Knobs(), pad=pad, **geometry)
    assert slice_error((layer.g_x * x).sum(), (delta * layer.z).sum(), axes=()) <= GATE["float64"]


def test_convolution_with_one_tap_is_dense() -> None:
    """A 1x1 kernel sees every position as a sample; statistics may use the first images only."""
    rng = np.random.default_rng(1)
    x, kernel = rng.standard_normal((3, 4, 5, 6)), rng.standard_normal((6, 7))
    bias, delta = rng.standard_normal(7), rng.standard_normal((3, 4, 5, 7))
    no_pad = ((0, 0), (0, 0))
    conv = oracle.conv2d(
        x, kernel[None, None], bias, delta, "silu", Knobs(statistics_rows=2), pad=no_pad
    )
    dense = oracle.dense(x, kernel, bias, delta, "silu", Knobs(statistics_rows=2 * 4 * 5))
    for field in dense._fields:
        mine, theirs = getattr(conv, field), getattr(dense, field)
        np.testing.assert_array_equal(mine.reshape(theirs.shape), theirs)


def test_refusals() -> None:
    """What has no statistics, and what has no variance."""
    for rows, bias in ((0, None), (0, BIAS), (1, BIAS)):
        with pytest.raises(ValueError, match="no statistics"):
            oracle.dense(X[:rows], KERNEL, bias, DELTA[:rows], "relu", Knobs())
    with pytest.raises(ValueError, match="signed"):
        oracle.dense(X, KERNEL, BIAS, DELTA, "silu", Knobs(weighting="signed"))


def test_slice_error_can_fail() -> None:
    """The yardstick: scale, shape, NaN, a zero that is not zero, and vacuous comparisons."""
    b = np.array([[1e6, 1.0], [2e6, 1.0]])
    wrong = b + np.array([[0.0, 0.0], [0.0, 1.0]])
    assert slice_error(wrong, b, axes=(-1,)) == 1.0
    assert slice_error(wrong, b, axes=()) < VISIBLE * slice_error(wrong, b, axes=(1,))
    assert slice_error(b[0], b) == slice_error(b * np.nan, b) == np.inf
    zero = b * [0.0, 1.0]
    assert slice_error(zero, zero) == 0.0
    assert slice_error(zero + GATE["float64"], zero) == np.inf
    for nothing in (np.zeros((2, 2)), np.full((2, 2), np.nan), np.zeros((0, 2))):
        with pytest.raises(AssertionError, match="prove nothing"):
            slice_error(nothing, nothing)
    x = np.array([[1e3 - 1, 3.0], [1e3 + 1, 3.0]])
    np.testing.assert_array_equal(Relief.of(x.astype(np.float32)).factor, [100.0, 1.0])
    np.testing.assert_array_equal(Relief.of(x).factor, [1.0, 1.0])
    np.testing.assert_array_equal(Relief.of(x).constant, [False, True])
