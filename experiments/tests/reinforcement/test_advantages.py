"""Advantages, policies, learning curves: against plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.reinforcement.policy import Categorical, Gaussian
from experiments.reinforcement.ppo import advantages
from experiments.reinforcement.study import curve_of

DISCOUNT, TRACE = 0.9, 0.7


def test_advantages_are_those_of_a_loop() -> None:
    """Sums of later errors; nothing after an episode's end, no value after a natural one."""
    rng = np.random.default_rng(0)
    frames, count = 12, 3
    rewards, values, after = rng.normal(size=(3, frames, count))
    done = rng.random((frames, count)) < 0.4
    terminated = done & (rng.random((frames, count)) < 0.5)
    assert (done & ~terminated).any()
    expected = np.zeros((frames, count))
    for n in range(count):
        for t in range(frames):
            weight = 1.0
            for k in range(t, frames):
                earned = rewards[k, n] + (0 if terminated[k, n] else DISCOUNT * after[k, n])
                expected[t, n] += weight * (earned - values[k, n])
                if done[k, n]:
                    break
                weight *= DISCOUNT * TRACE
    found = advantages(rewards, values, after, terminated, done, DISCOUNT, TRACE)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["categorical", "gaussian"])
def test_policies_by_what_they_draw(name: str) -> None:
    """The entropy is the mean of minus the logarithms of many draws."""
    shape = (20_000, 2)
    if name == "categorical":
        policy = Categorical(jnp.broadcast_to(jnp.array([0.3, -1.0]), shape))
    else:
        policy = Gaussian(jnp.broadcast_to(jnp.array([3.0, -1.0]), shape), jnp.array([0.5, -1.0]))
    action = policy.sample(jax.random.key(0))
    drawn = -policy.log_prob(action)
    assert drawn.mean() == pytest.approx(float(policy.entropy()[0]), abs=0.03)
    if name == "gaussian":
        np.testing.assert_allclose(action.std(axis=0), np.exp([0.5, -1.0]), rtol=0.03)
    else:
        assert action.mean() == pytest.approx(1 / (1 + np.exp(1.3)), abs=0.02)


def test_curve_by_hand() -> None:
    """Means over episodes, not over updates; where none ends the last one stays."""
    returns = np.array([[0.0, 0.0, 6.0, 9.0, 0.0, 0.0, 4.0, 0.0]])
    episodes = np.array([[0, 0, 1, 3, 0, 0, 2, 0]])
    curve = curve_of(returns, episodes, 4)
    np.testing.assert_array_equal(curve, [[np.nan, 15 / 4, 15 / 4, 2.0]])
