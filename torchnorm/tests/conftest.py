"""Strict by default, see `parity_tests.strict`; no JAX."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from parity_tests.numerics import exact
from parity_tests.strict import make_warnings_errors


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Make warnings errors in this folder."""
    make_warnings_errors(items, Path(__file__).parent)


@pytest.fixture(autouse=True, scope="module")
def _exact_arithmetic() -> Iterator[None]:
    """Exact arithmetic for the tests of this folder."""
    with exact(("torch",), strict=True):
        yield
