"""The cost of recording, read off the program: that of the stateless form, or nothing."""

import jax
import jax.numpy as jnp
import optax
import pytest
import torch

import jaxnorm
import torchnorm
from jaxnorm import BNP, Rule
from parity_tests.test_cost import I, N, O, products

#: Full-size products of a whole step with Adam in the coordinates, by rule.
PRODUCTS = [
    (BNP, 3),
    (Rule(scale="none"), 4),
    (Rule(scale="layer"), 4),
    (Rule(), 5),
    (Rule(weighting="error"), 5),
    (Rule(decay=0.9), 5),
]


def program(rule, *, recorded):
    """The optimized program of one training step of a linen layer."""
    model = jaxnorm.linen.Dense(O, gate="relu", rule=rule, param_dtype=jnp.float32)
    x = jnp.ones((N, I), jnp.float32)
    variables = model.init(jax.random.key(0), x)
    params = variables["params"]
    tx = optax.adam(1e-3)
    if recorded:
        tx = jaxnorm.in_neuron_coordinates(tx)
    stats = jaxnorm.linen.init_statistics(model, variables, x)

    def loss(params, stats, x):
        z = model.apply({"params": params, "neuron_stats": stats}, x)
        return jnp.sum(jax.nn.relu(z) ** 2)

    def step(params, stats, state, x):
        more = {}
        if recorded:
            grads, batch, g_x = jax.grad(loss, (0, 1, 2))(params, stats, x)
            stats = more["neuron_stats"] = jaxnorm.update_statistics(stats, batch)
        else:
            grads, g_x = jax.grad(loss, (0, 2))(params, stats, x)
        updates, state = tx.update(grads, state, params, **more)
        return optax.apply_updates(params, updates), stats, state, g_x

    return jax.jit(step).lower(params, stats, tx.init(params), x).compile()


@pytest.mark.parametrize(("rule", "expected"), PRODUCTS, ids=str)
def test_products_of_a_recorded_step(rule, expected):
    assert products(program(rule, recorded=True).as_text()) == expected


def test_statistics_that_nobody_asks_for_cost_nothing():
    """Without their gradient they are dead code: the plain layer's three products."""
    assert products(program(Rule(), recorded=False).as_text()) == 3


def test_rows_thin_the_statistics():
    flops = {
        rows: program(Rule(statistics_rows=rows), recorded=True).cost_analysis()["flops"]
        for rows in (16, None)
    }
    # Three quarters of the two products, less what is elementwise: in the moments, too.
    assert flops[None] - flops[16] > 0.65 * 2 * (2 * N * I * O)


class _Count(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts full-size matrix products."""

    def __init__(self):
        super().__init__()
        self.products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            a, b = args[-2:]
            self.products += a.shape[0] * a.shape[1] * b.shape[1] == N * I * O
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("every", "expected"), [(1, [5, 5, 5]), (3, [5, 3, 3])])
def test_products_of_a_recorded_step_in_torch(every, expected):
    """And `statistics_every` saves them, after the start."""
    rule = torchnorm.Rule(statistics_every=every)
    model = torchnorm.Linear(I, O, gate="relu", rule=rule)
    optimizer = torch.optim.Adam(model.parameters())
    x = torch.randn(N, I, requires_grad=True)
    assert _products(model, x, None) == 3
    optimizer = torchnorm.optim.in_neuron_coordinates(optimizer, model)
    assert _products(model, x, optimizer) == 5
    model.neuron_stats.set_count(99, 3)
    assert [_products(model, x, optimizer) for _ in range(3)] == expected


def _products(model, x, optimizer):
    with _Count() as count:
        model(x).relu().square().sum().backward()
        if optimizer is not None:
            optimizer.step()
    return count.products
