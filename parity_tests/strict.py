"""How tests run: 64 bits, full products, no silent rank promotion, warnings as errors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from parity_tests.numerics import exact


def make_warnings_errors(items: list[pytest.Item], folder: Path) -> None:
    """Make warnings errors in the tests of one folder, not in those of other people."""
    for item in items:
        if item.path.is_relative_to(folder):
            item.add_marker(pytest.mark.filterwarnings("error"), append=False)


@pytest.fixture(autouse=True, scope="module")
def exact_arithmetic() -> Iterator[None]:
    """Exact arithmetic for the tests of a folder; other folders see their own configuration."""
    with exact(strict=True):
        yield
