"""No order of a sum decides, and what is no rounding is still found."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from parity_tests.cases import Case, geometries, make
from parity_tests.implementations.torch import TorchFunctional, TorchOptim
from parity_tests.matrix import compare, rounding
from parity_tests.tolerances import GATE, VISIBLE, summation

DENSE = ("scales", "constant", "large_mean", "nearly_dead", "wide", "tall", "no_bias", "masked")
CONV = ("scales", "constant", "large_mean", "masked")
CASES = [(f, None) for f in DENSE] + [(f, "groups, dilation") for f in CONV]


def _case(family: str, layer: str | None, seed: int) -> Case:
    gate = None if layer and family == "large_mean" else "relu"
    geometry = None if layer is None else geometries.CONVOLUTIONS[layer]
    return make(family, seed=seed, gate=gate, dtype="float32", layer=geometry)


def _in_other_orders(case: Case) -> list[Case]:
    """The samples from the last to the first, and at random."""
    samples = np.arange(len(case.x))
    orders = samples[::-1], np.random.default_rng(0).permutation(samples)
    return [replace(case, x=case.x[order], delta=case.delta[order]) for order in orders]


@pytest.mark.parametrize(("family", "layer"), CASES)
def test_in_any_order(family: str, layer: str | None) -> None:
    for seed in (0, 100, 200):
        case = _case(family, layer, seed)
        for each in (case, *_in_other_orders(case)):
            for implementation in (TorchFunctional(), TorchOptim()):
                assert not compare.misses(compare.examine(each, implementation))


@pytest.mark.parametrize(("family", "layer"), CASES)
def test_a_part_in_a_thousand_is_found(family: str, layer: str | None) -> None:
    """In whatever works about the mean, as all but the optimizers do; padding works about 0."""
    case = _case(family, layer, 0)
    for quantity in ("z", "g_x", "g_kernel", "g_bias"):
        wrong = TorchFunctional().gradients(case)
        value = getattr(wrong, quantity)
        if value is None:
            continue
        assert not compare.misses(compare.gradients(case, wrong))
        wrong = wrong._replace(**{quantity: value + VISIBLE * np.abs(value).max()})
        missed = compare.misses(compare.gradients(case, wrong))
        assert [finding.quantity for finding in missed] == [quantity]


def test_by_hand() -> None:
    """One feature, no statistics: the rounding of a sum of absolute values."""
    case = make("no_bias", dtype="float32", shape=(30, 3, 2))
    case = replace(case, knobs=replace(case.knobs, gradient="plain"))
    sums = np.abs(case.x.astype(float)).T @ np.abs(case.delta.astype(float))
    bound = rounding.bound(case, plain=False)
    np.testing.assert_allclose(bound.g_kernel, summation(30, np.float32) * sums, rtol=VISIBLE)
    assert bound.g_bias is None


def test_sums_that_do_not_cancel_have_the_gate() -> None:
    """About the mean, without padding, most float64 slices are measured in their own size."""
    case = make("scales")
    bound = rounding.bound(case, plain=False).g_kernel
    size = np.abs(case.expected.g_kernel).max(0)
    assert (bound.max(0) <= GATE["float64"] * size).mean() > 0.5
