"""Strict by default: 64 bits, full products, no silent rank promotion, warnings are errors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from parity_tests.numerics import exact

HERE = Path(__file__).parent

# Before JAX starts: enough devices on any machine for the tests of sharding.
jax.config.update("jax_num_cpu_devices", 8)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Make warnings errors in this folder, not in those of other people."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.filterwarnings("error"), append=False)


@pytest.fixture(autouse=True, scope="module")
def _exact_arithmetic() -> Iterator[None]:
    """Exact arithmetic for the tests of this folder; other folders see their own configuration."""
    with exact(strict=True):
        yield
