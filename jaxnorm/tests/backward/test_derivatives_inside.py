"""Derivatives by the input inside of a loss: physics-informed networks and gradient penalties.

What a layer records is that of its forward call, whatever the loss is of.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm
from jaxnorm import DEFERRED, PLAIN, Rule, neuronwise_dense, tell_gate
from jaxnorm.tests.nets import error
from parity_tests.tolerances import GATE

X = np.random.default_rng(0).normal(size=(12, 3)) * [1, 3, 0.3] + [1, 0, 2]
ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu}


def make(gate, rule=Rule(), *, deferred=False):
    """(u(params, stats, x [..., 3]) -> [...], params, empty stats)."""
    rng = np.random.default_rng(1)
    shapes = {"first": (3, 6), "last": (6, 1)}
    params = {k: (rng.normal(size=s) / 2, rng.normal(size=s[1])) for k, s in shapes.items()}

    def u(params, stats, x):
        for name in shapes:
            follows = None if name == "last" else DEFERRED if deferred else gate
            given = {"rule": rule, "statistics": stats[name]} if stats else {"rule": PLAIN}
            out = neuronwise_dense(x, *params[name], gate=follows, **given)
            if name == "last":
                return out[..., 0]
            x = ACTIVATIONS[gate](tell_gate(*out, gate=gate) if deferred else out)

    stats = {}
    for name, (inputs, outputs) in shapes.items():
        gated = name != "last"
        stats[name] = jaxnorm.statistics.tracked.empty(
            jaxnorm.operations.linear.dense(),
            *(jnp.zeros(shape) for shape in ((12, inputs), (inputs, outputs), (12, outputs))),
            rule,
            gated=gated,
            centered=True,
        )
    return u, params, stats


def each(f):
    """The mean square of a function of one sample."""
    return lambda u: lambda p, s: jnp.mean(jax.vmap(lambda x: f(lambda x: u(p, s, x))(x))(X) ** 2)


def along(u):
    """The derivative along one direction, forward."""
    return lambda x: jax.jvp(u, (x,), (jnp.ones(3),))[1]


#: u -> loss(params, stats); the losses that vanish for a ReLU are second derivatives.
FIRST = {
    "gradient": each(jax.grad),
    "jvp": each(along),
    "of the batch": lambda u: (
        lambda p, s: jnp.mean(jax.grad(lambda x: jnp.sum(u(p, s, x)))(jnp.asarray(X)) ** 2)
    ),
    "jvp of the batch": lambda u: (
        lambda p, s: jnp.mean(jax.jvp(lambda x: u(p, s, x), (X,), (np.ones_like(X),))[1] ** 2)
    ),
}
SECOND = {
    "laplacian": each(lambda u: lambda x: jnp.trace(jax.hessian(u)(x))),
    "jvp of grad": each(lambda u: lambda x: jax.jvp(jax.grad(u), (x,), (jnp.ones(3),))[1]),
    "grad of grad": each(lambda u: jax.grad(lambda x: jnp.sum(jax.grad(u)(x) ** 2))),
    "jvp of jvp": each(lambda u: along(along(u))),
    "third": each(lambda u: along(along(jax.grad(u)))),
}


def assert_recorded(found, expected):
    for name in expected:
        a, b = found[name], expected[name]
        assert float(a.counted().samples) == float(b.counted().samples) == len(X)
        a, b = (jaxnorm.statistics.merging.moments(each) for each in (a, b))
        for field in ("mean", "sigma"):
            assert error(getattr(a, field), getattr(b, field)) <= GATE["float64"], (name, field)


def assert_losses(losses, u, params, stats):
    expected = jax.grad(lambda s: jnp.sum(u(params, s, X) ** 2))(stats)

    def every(params, stats):
        found = {k: jax.grad(loss(u), (0, 1))(params, stats) for k, loss in losses.items()}
        return found, {k: jax.grad(loss(u))(params, {}) for k, loss in losses.items()}

    found, plain = jax.jit(every)(params, stats)
    for name in losses:
        # The last bias has no gradient in any of them.
        kernels = ([p[0] for p in params.values()] for params in (found[name][0], plain[name]))
        assert error(*kernels) <= GATE["float64"]
        assert_recorded(found[name][1], expected)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("gradient", "laplacian") else pytest.mark.slow)
        for name in FIRST | SECOND
    ],
)
def test_every_order_and_mode(name):
    assert_losses({name: (FIRST | SECOND)[name]}, *make("tanh"))


def test_other_weights():
    rule = Rule(weighting="signed", scale="layer", decay=0.9)
    assert_losses({"laplacian": SECOND["laplacian"]}, *make("tanh", rule))


@pytest.mark.parametrize("deferred", [False, True])
def test_where_nothing_flows_back_to_z_itself(deferred):
    """The second derivative of a ReLU is 0, and the loss does not depend on a linear layer's z."""
    losses = {name: FIRST[name] for name in ("gradient", "jvp")}
    assert_losses(losses, *make("relu", deferred=deferred))


def test_gates_that_are_told():
    assert_losses({"laplacian": SECOND["laplacian"]}, *make("tanh", deferred=True))


@pytest.mark.parametrize("name", ["gradient", "laplacian", "grad of grad"])
def test_gradients_are_those_of_jax_to_the_last_bit(name):
    u, params, stats = make("tanh")
    loss = (FIRST | SECOND)[name](u)
    found, plain = (jax.jit(jax.grad(lambda p, s=s: loss(p, s)))(params) for s in (stats, {}))
    jax.tree.map(np.testing.assert_array_equal, found, plain)


def test_a_call_is_recorded_once_beside_another():
    """The usual loss: a residual of values and derivatives, and values on the boundary."""
    u, params, stats = make("tanh")

    def run(params, stats):
        value, slopes = jax.vmap(jax.value_and_grad(lambda x: u(params, stats, x)))(X[:8])
        return jnp.mean((jnp.sum(slopes, 1) + value**2) ** 2) + jnp.mean(u(params, stats, X[8:]))

    found = jax.jit(jax.grad(run, 1))(params, stats)
    expected = jax.grad(lambda s: jnp.sum(u(params, s, X) ** 2))(stats)
    assert_recorded(found, expected)


def test_forward_mode_of_the_statistics_is_zero():
    u, params, stats = make("tanh")
    ones = jax.tree.map(jnp.ones_like, stats)
    z, tangent = jax.jvp(lambda s: u(params, s, X), (stats,), (ones,))
    assert jnp.all(z == u(params, {}, X))
    assert jnp.all(tangent == 0)
