"""What the rows of the normalizers in the matrix compare."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from parity_tests.matrix.build import DIRECT, Comparison
from parity_tests.matrix.compare import Finding
from parity_tests.normalizers.case import Case, Result, cases
from parity_tests.normalizers.compare import compare
from parity_tests.normalizers.family import families
from parity_tests.normalizers.implementations import Normalizer


def recipes(*, quick: bool = False) -> list[tuple[str, Case]]:
    """All cases, each with the row it belongs to."""
    return [(family.name, case) for family in families() for case in cases(family, quick=quick)]


def of_normalizers(case: Case, implementations: list[Normalizer]) -> Iterator[Comparison]:
    """Every implementation with the oracle, and linen with PyTorch."""
    results: dict[str, list[Result]] = {}
    for each in implementations:
        yield Comparison(each.name, case.words, partial(_examine, case, each, results))
    if {"linen", "torch module"} <= results.keys():
        pair = results["linen"], results["torch module"]
        yield Comparison(DIRECT, case.words, partial(compare, case, *pair))


def _examine(
    case: Case, implementation: Normalizer, results: dict[str, list[Result]]
) -> list[Finding]:
    """Compare with the oracle; the results are kept for the comparison with each other."""
    results[implementation.name] = implementation.run(case)
    return compare(case, results[implementation.name], case.expected)
