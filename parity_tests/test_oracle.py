"""The oracle against numbers worked out by hand, the golden files, and calculus."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest

from parity_tests import cases, golden, oracle
from parity_tests.cases import geometries
from parity_tests.golden import derive
from parity_tests.oracle import Convolution, ConvTranspose, Dense, Knobs, TorchConvTranspose
from parity_tests.tolerances import DERIVATIVE, GATE, VISIBLE, slice_error

# Two samples, two inputs, two neurons; the second neuron sees the second sample only.
X = np.array([[0.0, 0.0], [2.0, 4.0]])
KERNEL = np.array([[1.0, 1.0], [1.0, 1.0]])
BIAS = np.array([1.0, -1.0])
DELTA = np.array([[1.0, 1.0], [3.0, 2.0]])
BARE = Knobs(shrinkage=0.0, damping=0.0, epsilon=0.0, step_size="standardized")


def test_by_hand() -> None:
    """Forward pass, moments and gradients of a layer small enough for a sheet of paper."""
    layer = oracle.dense(X, KERNEL, BIAS, DELTA, "relu", BARE)
    np.testing.assert_array_equal(layer.z, [[1, -1], [7, 5]])
    np.testing.assert_array_equal(layer.g_x, [[2, 2], [5, 5]])
    np.testing.assert_array_equal(layer.mean, [[1, 2], [2, 4]])
    np.testing.assert_array_equal(layer.sigma, [[1, 1], [2, 1]])  # no variance in one sample: 1
    np.testing.assert_array_equal(layer.g_kernel, [[2, -2], [1, -4]])
    np.testing.assert_array_equal(layer.g_bias, [4 - 1 * 2 - 2 * 1, 3 + 2 * 2 + 4 * 4])


def test_by_hand_of_the_plain_size() -> None:
    """What the first neuron reads has variances 1 and 4, of mean 2.5; the second's has none."""
    knobs = replace(BARE, step_size="plain")
    layer = oracle.dense(X, KERNEL, BIAS, DELTA, "relu", knobs)
    root = np.array([np.sqrt(2.5), 1])
    assert slice_error(layer.sigma, np.array([[1, 1], [2, 1]]) / root) <= GATE["float64"]
    assert slice_error(layer.g_kernel, [[5, -2], [2.5, -4]], axes=(0, 1)) <= GATE["float64"]
    assert slice_error(layer.g_bias, [4 - 5 - 5, 3 + 4 + 16], axes=(0,)) <= GATE["float64"]
    layer = oracle.dense(X, KERNEL, BIAS, DELTA, "relu", replace(knobs, gradient="standardized"))
    assert slice_error(layer.g_kernel, root * np.array([[2, -2], [2, -4]])) <= GATE["float64"]


def test_by_hand_standardized() -> None:
    """Divided by sigma once, the bias left alone."""
    layer = oracle.dense(X, KERNEL, BIAS, DELTA, "relu", replace(BARE, gradient="standardized"))
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


@pytest.mark.parametrize("name", golden.names())
def test_golden(name: str) -> None:
    """Every array in every golden file; no relief for large means."""
    errors = golden.errors(golden.read(name))
    assert {"z", "g_kernel", "g_bias", "mean", "sigma"} <= set(errors)
    assert max(errors.values()) <= GATE["float64"], errors


@pytest.mark.parametrize("name", derive.MADE)
def test_the_later_golden_files_are_what_their_formulas_give(name: str) -> None:
    """Every array, on this machine too."""
    file, derived = golden.read(name), derive.derived(name)
    assert file.knobs == Knobs(**derive.DEFAULT | derive.MADE[name].rule)
    assert derived.keys() == file.arrays.keys()
    for key, value in derived.items():
        assert slice_error(value, file.arrays[key], axes=()) <= GATE["float64"], key


@pytest.mark.parametrize("kind", geometries.LAYERS)
def test_the_input_gradient_is_the_adjoint(kind: str) -> None:
    """<delta, op(x)> = <g_x, x> without a bias: what no file holds."""
    for name, layer in geometries.LAYERS[kind].items():
        case = cases.make("no_bias", layer=layer, gate="silu")
        ours, theirs = (case.expected.g_x * case.x).sum(), (case.delta * case.expected.z).sum()
        assert slice_error(ours, theirs, axes=()) <= GATE["float64"], name


def test_convolution_with_one_tap_is_dense() -> None:
    """A 1x1 kernel sees every position as a sample; statistics may use some images only."""
    rng = np.random.default_rng(1)
    x, kernel = rng.standard_normal((6, 4, 5, 6)), rng.standard_normal((1, 1, 6, 7))
    bias, delta = rng.standard_normal(7), rng.standard_normal((6, 4, 5, 7))
    view = Convolution().view(x.shape, kernel.shape)
    conv = oracle.linear(view, x, kernel, bias, delta, "silu", Knobs(statistics_rows=2))
    dense = oracle.dense(
        x, kernel[0, 0], bias, delta, "silu", Knobs(statistics_rows=2), samples=4 * 5
    )
    for field in dense._fields:
        mine, theirs = (np.asarray(getattr(each, field)) for each in (conv, dense))
        mine, axes = mine.reshape(theirs.shape), (-1,) if theirs.ndim else ()
        assert slice_error(mine, theirs, axes=axes) <= GATE["float64"], field


@pytest.mark.parametrize(
    ("rows", "least", "taken"),
    [
        (6, None, range(6)),
        (6, 6, range(6)),
        (6, 2, [0, 3]),
        (7, 2, range(7)),  # a prime number
        (10, 3, range(0, 10, 2)),
        (96, 40, [n for n in range(96) if n % 4 < 2]),
        (256, 64, [n for n in range(256) if n % 16 < 4]),
        (8192, 2048, [n for n in range(8192) if n % 256 < 64]),
    ],
)
def test_by_hand_which_rows_are_taken(rows: int, least: int | None, taken: Iterable[int]) -> None:
    """At least as many as asked, evenly; in blocks where there are many."""
    assert oracle.spaced(rows, least) == list(taken)


def test_by_hand_moments_of_some_rows() -> None:
    """The layer's of all, moved and stretched by what two of four rows say."""
    x, s = np.array([[0.0], [2.0], [4.0], [10.0]]), np.array([[1.0], [1.0], [3.0], [1.0]])
    at = oracle.moments(x, s, replace(BARE, statistics_rows=2))
    # All: mean 4, variance 14. Rows 0 and 4: mean 2, variance 4; weighted 1 and 3: 3 and 3.
    np.testing.assert_allclose((at.mean, at.sigma**2), ([[4 + 3 - 2]], [[14 * 3 / 4]]))


# Three pixels of one channel, a window of two: in SAME and here zeros are read behind the end.
PIXELS, WINDOW = np.array([[[1.0], [2.0], [4.0]]]), np.array([[[1.0]], [[10.0]]])


@pytest.mark.parametrize(
    ("op", "z"),
    [
        (Convolution(), [21, 42, 4]),
        (Convolution(1, "VALID"), [21, 42]),
        (Convolution(1, "CAUSAL"), [10, 21, 42]),
        (Convolution(1, "CIRCULAR"), [21, 42, 14]),
        (Convolution(1, "REFLECT"), [21, 42, 24]),
        (Convolution(2), [21, 4]),
        (Convolution(1, ((0, 0),), 2), [1, 20, 2, 40]),
        (Convolution(1, "VALID", 1, 2), [41]),
        (ConvTranspose(2, "VALID"), [10, 1, 20, 2, 40, 4]),
        (ConvTranspose(1, "VALID"), [10, 21, 42, 4]),
    ],
    ids=str,
)
def test_by_hand_what_taps_read(op: Convolution | ConvTranspose, z: list[float]) -> None:
    """Small enough to be done in the head; lax.conv_transpose does not flip the window."""
    view = op.view(PIXELS.shape, WINDOW.shape)
    np.testing.assert_array_equal(oracle.forward(view, PIXELS, WINDOW, None).ravel(), z)
    assert view.z_shape == (1, len(z), 1)


def test_by_hand_torch_flips_the_window() -> None:
    """Input q goes to 2 q + tap - padding: at either end one pixel is cut off."""
    view = TorchConvTranspose(2, 1).view(PIXELS.shape, (1, 1, 3))
    z = oracle.forward(view, PIXELS, np.array([[[1.0, 10.0, 100.0]]]), None)
    np.testing.assert_array_equal(z.ravel(), [10, 102, 20, 204, 40])


def test_by_hand_masked() -> None:
    """A weight that is switched off has no gradient, and no share in the bias's."""
    mask = np.array([[1.0], [0.0]])
    arrays = X, np.ones((2, 1)), np.zeros(1), DELTA[:, :1]
    layer = oracle.linear(Dense().view((2, 2), (2, 1)), *arrays, None, BARE, mask)
    np.testing.assert_array_equal(layer.z, [[0], [2]])
    np.testing.assert_array_equal(layer.g_kernel, [[2], [0]])
    np.testing.assert_array_equal(layer.g_bias, [4 - 1 * 2])


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
    assert slice_error(zero + GATE["float64"], zero, unit=[[1.0, 0.0]]) <= GATE["float64"]
    assert slice_error(wrong, b, unit=[[0.0, 0.0], [0.0, 4.0]]) == 0.25
