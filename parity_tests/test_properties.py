"""What the rule promises, for every implementation: the mathematics, not the numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from parity_tests import cases, oracle
from parity_tests.cases import Case
from parity_tests.implementations import Implementation, quick
from parity_tests.implementations.plain_layers import PLAIN
from parity_tests.matrix import compare
from parity_tests.oracle import Knobs
from parity_tests.tolerances import GATE, VISIBLE, slice_error

EVERY = pytest.mark.parametrize("implementation", quick(), ids=lambda i: i.name)
#: Those whose backward pass adapts the gradient, in every form; the others leave it to an optimizer
#: and have tests of their own for what that refuses.
DIRECT = pytest.mark.parametrize("implementation", PLAIN, ids=lambda i: i.name)
#: sigma as the papers have it; the default is that over its root mean square.
ABSOLUTE = Knobs(step_size="standardized")
BARE = replace(ABSOLUTE, shrinkage=0.0, damping=0.0, epsilon=0.0)
EXACT = GATE["float64"]


def _step(case: Case, implementation: Implementation, x: np.ndarray) -> np.ndarray:
    """The layer's function on `x` after one step of gradient descent on the case."""
    result, rate = implementation.gradients(case), 0.1
    return x @ (case.kernel - rate * result.g_kernel) + (case.bias - rate * result.g_bias)


@EVERY
@pytest.mark.parametrize("weighting", ["gate", "gate_squared", "uniform", "error"])
def test_a_step_does_not_depend_on_the_units_of_the_inputs(
    implementation: Implementation, weighting: str
) -> None:
    """Other inputs, weights for which the function is the same: the step is the same as well."""
    case = cases.make(gate="silu", seed=5, knobs=replace(BARE, weighting=weighting))
    rng = np.random.default_rng(6)
    inputs = case.kernel.shape[0]
    a = np.exp(rng.standard_normal(inputs)) * rng.choice([-1.0, 1.0], inputs)
    t = rng.standard_normal(inputs) * np.abs(a) * case.x.std(0)
    kernel = case.kernel / a[:, None]
    other = replace(case, x=case.x * a + t, kernel=kernel, bias=case.bias - t @ kernel)

    after, after_other = (_step(c, implementation, c.x) for c in (case, other))
    assert slice_error(after_other, after) <= EXACT
    plain, plain_other = (replace(c, knobs=Knobs(gradient="plain")) for c in (case, other))
    implementation = _plain(implementation)
    after, after_other = (_step(c, implementation, c.x) for c in (plain, plain_other))
    assert slice_error(after_other, after) > VISIBLE


@EVERY
def test_uniform_is_batch_normalization_preconditioning(implementation: Implementation) -> None:
    """Lange, Helfrich, Ye (2022), with the mean in place of their maximum in the damping."""
    case = cases.make(knobs=replace(ABSOLUTE, weighting="uniform", damping=0.3, epsilon=1e-4))
    g_kernel, g_bias = case.x.T @ case.delta, case.delta.sum(0)
    mean, variance = case.x.mean(0), case.x.var(0)
    s2 = variance + 0.3 * variance.mean() + 1e-4
    step = (g_kernel - np.outer(mean, g_bias)) / s2[:, None]
    result = implementation.gradients(case)
    assert slice_error(result.g_kernel, step, axes=(0, 1)) <= EXACT
    assert slice_error(result.g_bias, g_bias - mean @ step, axes=()) <= EXACT


@EVERY
def test_error_is_the_quasi_diagonal_update(implementation: Implementation) -> None:
    """Ollivier's metric as `QDRiemaNNLinear` applies it, times the mass (we do not divide)."""
    case = cases.make(knobs=replace(BARE, weighting="error"))
    x, delta = case.x, case.delta
    m0, m1, m2 = (delta**2).sum(0), x.T @ delta**2, (x**2).T @ delta**2
    step = (m0 * (x.T @ delta) - m1 * delta.sum(0)) / (m2 * m0 - m1**2)
    bias_step = (delta.sum(0) - (m1 * step).sum(0)) / m0
    result = implementation.gradients(case)
    assert slice_error(result.g_kernel, m0 * step, axes=(0, 1)) <= EXACT
    assert slice_error(result.g_bias, m0 * bias_step, axes=()) <= EXACT


def _plain(implementation: Implementation) -> Implementation:
    """The plain layer that an implementation stands in for."""
    return [
        reference for ours, reference in PLAIN.items() if isinstance(implementation, type(ours))
    ][-1]


def _descent(case: Case, implementation: Implementation) -> np.ndarray:
    """<plain gradient, ours> for each neuron, in units of the two norms."""
    g, ours = case.x.T @ case.delta, implementation.gradients(case)
    stack = [np.vstack([kernel, bias]) for kernel, bias in ((g, case.delta.sum(0)), ours[2:])]
    norms = np.linalg.norm(stack[0], axis=0) * np.linalg.norm(stack[1], axis=0)
    return (stack[0] * stack[1]).sum(0) / norms


def _every_family(gradient: str) -> list[Case]:
    families = ("scales", "constant", "large_mean", "dead", "nearly_dead")
    knobs = Knobs(gradient=gradient)
    return [cases.make(f, seed=seed, knobs=knobs) for f in families for seed in range(4)]


@EVERY
def test_preconditioned_descends(implementation: Implementation) -> None:
    """<g, P P' g> >= 0 for every neuron of every case."""
    every = _every_family("preconditioned")
    assert min(_descent(case, implementation).min() for case in every) >= -EXACT


@DIRECT
def test_standardized_need_not_descend(implementation: Implementation) -> None:
    """Not pulled back, it may be negative."""
    standardized = _every_family("standardized")
    assert min(_descent(case, implementation).min() for case in standardized) < -VISIBLE


@EVERY
def test_gate_squared_is_gate_for_relu(implementation: Implementation) -> None:
    """An indicator is its own square, bit for bit."""
    case = cases.make("nearly_dead")
    squared = replace(case, knobs=Knobs(weighting="gate_squared"))
    both = implementation.gradients(case), implementation.gradients(squared)
    for mine, theirs in zip(*both, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@EVERY
def test_no_gate_is_uniform(implementation: Implementation) -> None:
    """No activation follows: every sample counts alike."""
    case = cases.make(gate=None)
    uniform = replace(case, gate="relu", knobs=Knobs(weighting="uniform"))
    assert not compare.misses(
        compare.gradients(case, implementation.gradients(case), implementation.gradients(uniform))
    )


@EVERY
def test_the_unit_of_the_sample_weight_does_not_matter(implementation: Implementation) -> None:
    """The statistics of c s are those of s; nothing depends on the size of the errors."""
    case = cases.make(knobs=Knobs(weighting="error"))
    mean, sigma = implementation.moments(case)
    loud = replace(case, delta=1e4 * case.delta)
    assert slice_error(implementation.moments(loud).mean, mean, axes=(0, 1)) <= EXACT
    assert slice_error(implementation.moments(loud).sigma, sigma, axes=(0, 1)) <= EXACT


@EVERY
def test_a_dead_neuron_has_the_moments_of_the_layer(implementation: Implementation) -> None:
    """Exactly what uniform weights give, for that neuron alone."""
    case = cases.make("dead", knobs=ABSOLUTE)
    uniform = replace(case, knobs=replace(ABSOLUTE, weighting="uniform"))
    dead, layer = (implementation.gradients(c).g_kernel[:, 0] for c in (case, uniform))
    assert slice_error(dead, layer, axes=()) <= EXACT
    assert (
        slice_error(*(implementation.gradients(c).g_kernel[:, 1] for c in (case, uniform)), axes=())
        > VISIBLE
    )


@EVERY
@pytest.mark.parametrize("where", ["x", "delta", "kernel", "bias"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_spreads_as_in_the_plain_layer(
    implementation: Implementation, where: str, value: float
) -> None:
    """Neither hidden nor carried to neurons that it did not touch; the rest as the oracle says."""
    case = cases.make(gate="relu")
    spoiled = {"x": case.x, "delta": case.delta, "kernel": case.kernel, "bias": case.bias}[
        where
    ].copy()
    spoiled[(2,) * spoiled.ndim] = value
    case = replace(case, **{where: spoiled})
    result, plain = implementation.gradients(case), _plain(implementation).gradients(case)
    with np.errstate(all="ignore"):
        expected = case.expected
    for field in result._fields:
        mine, theirs, right = (getattr(a, field) for a in (result, plain, expected))
        sound = np.isfinite(theirs)
        np.testing.assert_array_equal(np.isfinite(mine), sound, err_msg=field)
        axes = () if mine.ndim == 1 else (-1,)
        assert slice_error(np.where(sound, mine, 1), np.where(sound, right, 1), axes=axes) <= EXACT


@DIRECT
def test_one_row_is_not_a_sample(implementation: Implementation) -> None:
    """With a bias x - mean would be 0 and nothing would ever learn: refused, with the way out."""
    case = cases.make("pairs")
    one = replace(case, x=case.x[:1], delta=case.delta[:1])
    for knobs in (
        Knobs(),
        Knobs(scale="none"),
        Knobs(weighting="uniform", gradient="standardized"),
    ):
        with pytest.raises(ValueError, match="sample"):
            implementation.gradients(replace(one, knobs=knobs))
    for harmless in (
        replace(one, knobs=Knobs(gradient="plain")),
        replace(one, bias=None),
        replace(case, knobs=Knobs(statistics_rows=1)),  # of one row the neurons know nothing
    ):
        assert not compare.misses(compare.gradients(harmless, implementation.gradients(harmless)))


@DIRECT
@pytest.mark.parametrize("bias", [True, False])
def test_an_empty_batch_has_no_gradient(implementation: Implementation, bias: bool) -> None:
    """There is nothing to take statistics of."""
    case = cases.make("pairs")
    empty = replace(case, x=case.x[:0], delta=case.delta[:0], bias=case.bias if bias else None)
    with pytest.raises(ValueError, match="sample"):
        implementation.gradients(empty)


@EVERY
def test_statistics_of_some_rows_take_the_others_for_the_layer(
    implementation: Implementation,
) -> None:
    """The order of the others does not matter, that of these does, and so do the others."""
    case = cases.make(knobs=Knobs(statistics_rows=16))
    others = np.flatnonzero(np.arange(48) % 3)
    permuted, other = case.x.copy(), case.x.copy()
    permuted[others], other[others] = case.x[others[::-1]], 3.0 * case.x[others]
    mine = implementation.moments(case)
    theirs = implementation.moments(replace(case, x=permuted))
    assert slice_error(theirs.mean, mine.mean) <= GATE["float64"]
    assert slice_error(theirs.sigma, mine.sigma) <= GATE["float64"]
    for x in (other, np.roll(case.x, 1, axis=0)):
        assert slice_error(implementation.moments(replace(case, x=x)).mean, mine.mean) > VISIBLE


@EVERY
def test_signed_weights_have_no_variance(implementation: Implementation) -> None:
    """Refused where the rule is made; the oracle refuses it too."""
    case = replace(cases.make(gate="silu"), knobs=Knobs(weighting="signed"))
    with pytest.raises(ValueError, match="signed"):
        implementation.gradients(case)
    with pytest.raises(ValueError, match="signed"):
        oracle.dense(case.x, case.kernel, case.bias, case.delta, "silu", case.knobs)
