"""The claims of the theory's page hold, and would not with another rule."""

import re
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.theory import claims, gated
from experiments.theory.claims import CLAIMS, Claim

PAGE = Path(claims.__file__).with_name("README.md")


@pytest.fixture(autouse=True, scope="module")
def _double() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.text)
def test_it_holds(claim: Claim) -> None:
    value = claim.check()
    assert claim.holds(value), value


def _no_centering(mean, sigma):
    return np.diag(np.concatenate([[1.0], 1 / sigma]))


def _wrong_sign(mean, sigma):
    p = np.diag(np.concatenate([[1.0], 1 / sigma]))
    p[0, 1:] = mean / sigma
    return p


def _squared(mean, sigma):
    p = np.diag(np.concatenate([[1.0], 1 / sigma**2]))
    p[0, 1:] = -mean / sigma**2
    return p


@pytest.mark.parametrize("wrong", [_no_centering, _wrong_sign, _squared])
def test_with_other_coordinates_it_would_not(wrong, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gated, "coordinates", wrong)
    for check in (claims.rule_is_descent_in_coordinates, claims.block_becomes_correlation):
        assert check() > 1e-3


def test_without_its_shares_the_bound_would_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    right = gated.gated
    monkeypatch.setattr(gated, "gated", lambda alpha: right(alpha)._replace(shrunk=0.3))
    assert claims.gated_moments_are_those_of_samples() > 1e-3


def test_with_damping_a_step_is_not_invariant(monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    monkeypatch.setattr(claims, "EXACT", dataclasses.replace(claims.EXACT, damping=0.5))
    assert claims.step_is_invariant() > 1e-3


def test_the_table_of_the_page_is_what_the_formulas_say() -> None:
    rows = re.findall(r"^\| ([\d.]+) % \| ([\d.]+) \| ([\d.]+) \|$", PAGE.read_text(), re.M)
    assert len(rows) == 5
    for (share, layer, neuron), alpha in zip(rows, (-1, 0, 1, 2, 3), strict=True):
        expected = (
            100 * gated.gated(alpha).share,
            claims.layer_wide(alpha),
            claims.neuron_wise(alpha),
        )
        np.testing.assert_allclose([float(share), float(layer), float(neuron)], expected, rtol=0.04)


def test_every_section_with_a_proof_is_checked() -> None:
    sections = set(re.findall(r"^## (\d)\.", PAGE.read_text(), re.M))
    assert {claim.number for claim in CLAIMS} == sections
