"""The data of a test are its own: see `pytest_runtest_setup` in conftest.py."""

import numpy as np
import pytest

RNG = np.random.default_rng(0)
FIRST = np.random.default_rng(0).random()


@pytest.mark.parametrize("_", range(2))
def test_every_test_draws_from_the_beginning(_):
    assert RNG.random() == FIRST
