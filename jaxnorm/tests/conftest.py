"""Strict by default, see `parity_tests.strict`."""

from pathlib import Path

import jax
import pytest

from parity_tests.strict import exact_arithmetic as exact_arithmetic
from parity_tests.strict import make_warnings_errors

# Before JAX starts: enough devices on any machine for the tests of sharding.
jax.config.update("jax_num_cpu_devices", 8)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Make warnings errors in this folder."""
    make_warnings_errors(items, Path(__file__).parent)
