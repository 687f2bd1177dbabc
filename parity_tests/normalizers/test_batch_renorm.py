"""Batch Renormalization: its limits, and what it is within them and at them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jaxnorm
import jaxnorm.normalizers as of_jax
import torchnorm.normalizers as of_torch
from parity_tests.oracle.normalizers.batch_renorm import limits
from parity_tests.tolerances import SAME_STEP

RNG = np.random.default_rng(0)
X = RNG.normal(size=(5, 2, 3)) * [0.5, 1.0, 2.0] + [1.0, -2.0, 0.0]
MEAN, STD = np.array([0.8, -1.5, 0.1]), np.array([0.6, 0.9, 1.7])


def _jax(steps: int, **knobs: Any) -> Any:
    state = of_jax.RenormState(jnp.asarray(MEAN), jnp.asarray(STD), jnp.asarray(steps))
    y, _ = of_jax.batch_renorm(jnp.asarray(X), state, train=True, **knobs)
    return np.asarray(y)


def _torch(steps: int, **knobs: Any) -> Any:
    state = of_torch.RenormState(torch.tensor(MEAN), torch.tensor(STD), torch.tensor(steps))
    x = torch.tensor(X).movedim(-1, 1)
    y, _ = of_torch.batch_renorm(x, state, training=True, **knobs)
    return y.movedim(1, -1).numpy()


@pytest.mark.parametrize("run", [_jax, _torch])
def test_within_the_limits_training_is_evaluation_and_at_one_and_zero_batch_norm(run: Any) -> None:
    wide = run(0, limits=lambda steps: (9.0, 9.0))
    np.testing.assert_allclose(wide, (X - MEAN) / STD, rtol=0, atol=1e-13)
    standard = (X - X.mean((0, 1))) / (X.std((0, 1)) + 1e-3)
    for steps in (0, 5000):
        np.testing.assert_allclose(run(steps), standard, rtol=0, atol=1e-13)
    # A step later, and in a run of a tenth of the length, it is neither.
    for found in (run(5100), run(510, schedule_scale=0.1)):
        assert np.abs(found - standard).max() > 1e-3
        assert np.abs(found - wide).max() > 1e-3


@pytest.mark.parametrize("steps", [0, 5000, 15000, 25000, 32500, 40000, 10**6])
def test_the_published_limits(steps: int) -> None:
    expected = limits(steps)
    assert np.allclose(of_jax.published_limits(jnp.float64(steps)), expected, rtol=SAME_STEP)
    found = of_torch.published_limits(torch.tensor(float(steps), dtype=torch.float64))
    assert np.allclose(found, expected, rtol=SAME_STEP)


def test_no_gradient_goes_through_the_running_statistics() -> None:
    """Which a loop of several steps inside of one derivative would see."""
    old = of_jax.initial_renorm_state(3)

    def run(x: Any) -> Any:
        new = of_jax.batch_renorm(x, old, train=True)[1]
        return jnp.sum(new.mean + new.std)

    assert not np.any(jax.jit(jax.grad(run))(jnp.asarray(X)))
    x = torch.tensor(X).movedim(-1, 1).requires_grad_()
    _, new = of_torch.batch_renorm(x, of_torch.initial_renorm_state(3), training=True)
    assert not new.mean.requires_grad
    assert not new.std.requires_grad


def test_init_takes_what_training_refuses() -> None:
    layer, one = jaxnorm.linen.normalizers.BatchRenorm(use_running_average=False), jnp.ones((1, 3))
    variables = layer.init(jax.random.key(0), one)
    assert int(variables["batch_stats"]["steps"]) == 0
    with pytest.raises(ValueError, match="more than one value per channel"):
        layer.apply(variables, one, mutable=["batch_stats"])
