"""Exact arithmetic, see `parity_tests.numerics`; no JAX."""

from collections.abc import Iterator

import pytest

from parity_tests.numerics import exact


@pytest.fixture(autouse=True, scope="module")
def _exact_arithmetic() -> Iterator[None]:
    with exact(("torch",), strict=True):
        yield
