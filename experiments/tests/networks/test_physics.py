"""Derivatives by the inputs, their statistics, and the equation that they are for."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import jaxnorm
from experiments.studies.tasks import TASKS, Physics
from experiments.training.trainer import initialize
from experiments.workloads import STUDIED
from experiments.workloads.burgers import VISCOSITY, solution

BURGERS = STUDIED["burgers"].load()
#: Points within and at the edges.
X, TARGETS = (
    np.concatenate([array[:20], array[-20:]])
    for array in (BURGERS.train.inputs, BURGERS.train.targets)
)
SMALL = Physics("small", "burgers", widths=(6,), activation="tanh")


def test_derivatives_are_those_of_each_sample() -> None:
    network = SMALL.network(None, 1)
    variables = jax.jit(partial(initialize, network))(0, X)

    def u(point):
        return network.network.apply(variables, point[None], train=False)[0, 0]

    @jax.jit
    def both():
        gradient, hessian = jax.vmap(jax.grad(u))(X), jax.vmap(jax.hessian(u))(X)
        expected = jnp.stack([jax.vmap(u)(X), *gradient.T, hessian[:, 1, 1]], axis=-1)
        return network.apply(variables, X, train=False), expected

    found, expected = both()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_rule_leaves_the_gradient_and_counts_each_sample_once() -> None:
    ours, plain = SMALL.network(jaxnorm.NEURONWISE, 1), SMALL.network(None, 1)
    variables = jax.jit(partial(initialize, ours))(0, X)

    def loss(network, by):
        return BURGERS.loss(network.apply(by, X, train=True), TARGETS)

    gradients = jax.jit(jax.grad(lambda by: loss(ours, by)))(variables)
    expected = jax.jit(jax.grad(lambda params: loss(plain, {"params": params})))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        gradients["params"],
        expected(variables["params"]),
    )
    for record in gradients["neuron_stats"].values():
        assert record["statistics"].samples == len(X)


def test_the_solution_solves_the_equation() -> None:
    rng, h = np.random.default_rng(0), 1e-3
    t, x = rng.uniform(0.05, 0.25, 50), rng.uniform(-0.9, 0.9, 50)
    u, later, earlier = solution(t, x), solution(t + h, x), solution(t - h, x)
    right, left = solution(t, x + h), solution(t, x - h)
    u_t, u_x = (later - earlier) / (2 * h), (right - left) / (2 * h)
    u_xx = (right - 2 * u + left) / h**2
    assert abs(u_t).max() > 0.5
    np.testing.assert_allclose(u_t + u * u_x, VISCOSITY * u_xx, atol=1e-3)
    np.testing.assert_allclose(solution(np.zeros(3), x[:3]), -np.sin(np.pi * x[:3]), atol=1e-12)


def test_the_loss_is_zero_for_the_solution_alone() -> None:
    u = TARGETS[:, 1]
    exact = jnp.stack([u, jnp.zeros_like(u), jnp.zeros_like(u), jnp.zeros_like(u)], axis=-1)
    assert BURGERS.loss(exact, TARGETS) < 1e-12
    assert BURGERS.loss(exact.at[-1, 0].add(1), TARGETS) > 0.01  # at an edge
    assert BURGERS.loss(exact.at[0, 0].add(1), TARGETS) < 1e-12  # within the value is not read
    assert BURGERS.loss(exact.at[0, 1].add(1), TARGETS) > 0.01  # the residual is
    assert set(TARGETS[:20, 0]) == {0}
    assert TASKS["burgers"].workload == "burgers"
