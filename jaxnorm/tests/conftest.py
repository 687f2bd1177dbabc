"""Exact arithmetic and eight devices, see `parity_tests.numerics`; no PyTorch."""

from collections.abc import Iterator

import jax
import pytest

from parity_tests.numerics import exact

# Before JAX starts: enough devices on any machine for the tests of sharding.
jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(autouse=True, scope="module")
def _exact_arithmetic() -> Iterator[None]:
    with exact(("jax",), strict=True):
        yield
