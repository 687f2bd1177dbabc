"""Under ``jax.numpy_dtype_promotion("strict")`` and ``jax.numpy_rank_promotion("raise")``."""

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxnorm
from jaxnorm import Rule
from jaxnorm.tests import nets

RULES = {
    "default": Rule(),
    "decay": Rule(decay=0.9),
    "error weights": Rule(weighting="error", step_size="standardized"),
    "now and then": Rule(statistics_every=2, scale="layer"),
    "centered only": Rule(scale="none"),
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_step(rule):
    """As otherwise; `optax.sgd` is one of those that themselves allow it."""
    net = nets.make("linen converted", rule, jnp.float32)
    x, y = nets.data(dtype=jnp.float32)
    tx = jaxnorm.in_neuron_coordinates(optax.sgd(0.01, momentum=0.9))
    expected = jax.jit(lambda *args: net.step(tx, *args))(
        tx.init(net.params), net.params, net.stats, x, y
    )
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        net = nets.make("linen converted", rule, jnp.float32)
        actual = jax.jit(lambda *args: net.step(tx, *args))(
            tx.init(net.params), net.params, net.stats, x, y
        )
    assert nets.error(actual[1], expected[1]) == 0
