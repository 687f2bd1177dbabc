"""Every normalizer in linen, nnx and PyTorch against NumPy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from parity_tests.matrix.build import build
from parity_tests.normalizers.case import Case, cases
from parity_tests.normalizers.comparisons import of_normalizers
from parity_tests.normalizers.family import Family, families
from parity_tests.normalizers.implementations import load
from parity_tests.oracle.complex_step import vjp

IMPLEMENTATIONS = load()


def _matrix(family: Family) -> Any:
    recipes = [(family.name, case) for case in cases(family, quick=True)]
    return build(recipes, lambda case: of_normalizers(case, IMPLEMENTATIONS))


@pytest.mark.parametrize("family", families(), ids=lambda family: family.name)
def test_all_packages_compute_what_numpy_computes(family: Family) -> None:
    matrix = _matrix(family)
    assert not matrix.messages
    assert matrix.comparisons


@pytest.mark.parametrize("family", families()[:1], ids=lambda family: family.name)
@pytest.mark.parametrize("quantity", ["y", "state", "gradients"])
def test_a_wrong_number_is_a_miss(family: Family, quantity: str) -> None:
    case = Case(family, knobs=family.variants[0])
    wrong = []
    for result in case.expected:
        found = getattr(result, quantity)
        if isinstance(found, dict):
            found = {name: array + 1e-9 for name, array in found.items()}
        else:
            found = found + 1e-9
        wrong.append(result._replace(**{quantity: found}))
    vars(case)["expected"] = wrong
    matrix = build([("", case)], lambda case: of_normalizers(case, IMPLEMENTATIONS[:1]))
    assert matrix.misses


def test_an_implementation_that_raises_is_a_crash() -> None:
    family = replace(families()[0], name="Nothing")
    matrix = build(
        [("", Case(family, knobs=family.variants[0]))],
        lambda case: of_normalizers(case, IMPLEMENTATIONS),
    )
    assert matrix.crashes == len(IMPLEMENTATIONS)


def test_the_complex_step_is_the_derivative() -> None:
    x, delta = np.array([[0.3, -2.0], [5.0, 1e-3]]), np.array([[1.0, -0.5], [0.1, 2.0]])
    found = vjp(lambda a: a["w"] * np.exp(a["x"]) / (1 + a["x"] ** 2), {"x": x, "w": x[0]}, delta)
    q = np.exp(x) / (1 + x**2)
    slope = x[0] * q * (1 - 2 * x / (1 + x**2))
    np.testing.assert_allclose(found["x"], delta * slope, rtol=1e-14)
    np.testing.assert_allclose(found["w"], (delta * q).sum(0), rtol=1e-14)
