"""The first step is as right as the last, in float32, whatever the mean and the unit of x.

Of the unit only a standardized step is free: one of the plain size goes with it as the plain does.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import jaxnorm
from jaxnorm import Rule
from parity_tests.tolerances import SAME_STEP, slice_error

#: (mean, std, unit of both).
SCALES = [
    (0, 1, 1),
    (100, 1, 1),
    (1e3, 1, 1),
    (1e4, 1, 1e-2),
    (0, 1, 1e-6),
    (1e3, 1, 1e-6),
    (30, 1, 1e6),
]


SGD, ADAM = optax.sgd(0.1), optax.adam(0.1)


@functools.cache
def program(layer, inner, dtype):
    """(layer, optimizer, the loop of its steps, compiled once for inputs of any scale)."""
    made, tx = layer(dtype), jaxnorm.in_neuron_coordinates(inner)

    def loss(params, stats, x, y):
        z = made.apply({"params": params, "neuron_stats": stats}, x)
        return jnp.mean((z - y) ** 2)

    def step(carry, batch):
        params, stats, state = carry
        value, (grads, new) = jax.value_and_grad(loss, (0, 1))(params, stats, *batch)
        stats = jaxnorm.update_statistics(stats, new)
        updates, state = tx.update(grads, state, params, neuron_stats=stats)
        return (optax.apply_updates(params, updates), stats, state), value

    return made, tx, jax.jit(functools.partial(jax.lax.scan, step))


def losses(layer, inner, x, y, dtype):
    """Of 20 steps from weights of 0."""
    made, tx, run = program(layer, inner, dtype)
    x, y = jnp.asarray(x, dtype), jnp.asarray(y, dtype)
    shapes = jax.eval_shape(made.init, jax.random.key(0), x[0])
    variables = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    params = variables["params"]
    stats = jaxnorm.linen.init_statistics(made, variables, x[0])
    return np.asarray(run((params, stats, tx.init(params)), (x, y))[1])


@functools.cache
def dense(decay, scale="neuron", every=None):
    rule = Rule(decay=decay, scale=scale, step_size="standardized", statistics_every=every)
    return lambda dtype: jaxnorm.linen.Dense(
        1,
        gate=None,
        rule=rule,
        param_dtype=dtype,
    )


@functools.cache
def conv(decay):
    return lambda dtype: jaxnorm.linen.Conv(
        1,
        (3,),
        padding="VALID",
        gate=None,
        rule=Rule(decay=decay, step_size="standardized"),
        param_dtype=dtype,
    )


def data(shape, mean, std, unit):
    """Inputs that float32 holds, and outputs of size 1."""
    rng = np.random.default_rng(0)
    x = ((rng.standard_normal((20, *shape)) * std + mean) * unit).astype(np.float32)
    z = (x.astype(np.float64) / unit - mean) / std
    return x, z


@pytest.mark.parametrize(
    ("scale", "inner", "decay"),
    [
        pytest.param(
            scale, inner, decay, marks=() if number % 4 == 2 * inner + decay else pytest.mark.slow
        )
        for number, scale in enumerate(SCALES)
        for inner in (0, 1)
        for decay in (0, 1)
    ],
)
def test_dense(scale, inner, decay):
    mean, std, unit = scale
    inner, decay = (SGD, ADAM)[inner], (0.0, 0.99)[decay]
    x, z = data((64, 4), mean, std, unit)
    y = z @ np.array([[0.5], [-1.0], [0.2], [0.3]])
    single, double = (losses(dense(decay), inner, x, y, t) for t in (np.float32, np.float64))
    # What a plain gradient in float32 has lost of the deviations from a mean, and Adam's division.
    lost = np.finfo(np.float32).eps * max(mean / std, 1)
    assert np.abs(single - double).max() <= 20 * lost * double[0]


@pytest.mark.parametrize(("mean", "std", "unit"), [(0, 1, 1), (1e3, 1, 1), (1e3, 1, 1e-6)])
@pytest.mark.parametrize("inner", [SGD, ADAM], ids=["sgd", "adam"])
def test_convolution(mean, std, unit, inner):
    x, z = data((8, 10, 2), mean, std, unit)
    y = z[..., 1:-1, :1] - 0.5 * z[..., 2:, 1:]
    single, double = (losses(conv(0.0), inner, x, y, t) for t in (np.float32, np.float64))
    lost = np.finfo(np.float32).eps * max(mean / std, 1)
    assert np.abs(single - double).max() <= 20 * lost * double[0]


@pytest.mark.parametrize("inner", [SGD, ADAM], ids=["sgd", "adam"])
def test_where_the_inputs_have_lost_their_digits(inner):
    """A spread of a few roundings: still near the float64 trajectory, and it never goes up."""
    x, z = data((64, 4), 1e6, 1, 1)
    y = z @ np.array([[0.5], [-1.0], [0.2], [0.3]])
    single, double = (losses(dense(0.0), inner, x, y, t) for t in (np.float32, np.float64))
    assert np.abs(single - double).max() <= 0.2 * double[0]
    assert single.max() <= 1.01 * single[0]
    assert single[-5:].max() <= 0.15 * single[0]


@pytest.mark.parametrize("inner", [SGD, ADAM], ids=["sgd", "adam"])
def test_the_unit_of_the_inputs_does_not_matter(inner):
    """To the digits of float32, from 1e-12 to 1e12."""
    x, z = data((64, 4), 5, 1, 1)
    y = z @ np.array([[0.5], [-1.0], [0.2], [0.3]])
    found = [losses(dense(0.0), inner, x * unit, y, np.float32) for unit in (1, 2.0**-40, 2.0**40)]
    assert np.abs(found[1] - found[0]).max() <= 1e-5
    assert np.abs(found[2] - found[0]).max() <= 1e-5


@pytest.mark.parametrize("scale", ["neuron", "layer", "none"])
def test_constant_features(scale):
    """One beside others has no gradient of its own: it does not wander in 300 steps of Adam.

    In every step, as the bias has far to go: about older means the kernel learns of that, too.
    """
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 32, 4)).astype(np.float32)
    x[..., 2] = 100
    y = x[..., :1]
    made = dense(0.0, scale, every=1)(np.float32)
    params = made.init(jax.random.key(0), jnp.asarray(x[0]))["params"]
    stats = jaxnorm.linen.init_statistics(made, {"params": params}, jnp.asarray(x[0]))
    tx = jaxnorm.in_neuron_coordinates(optax.adam(0.01))

    def step(carry, batch):
        params, stats, state = carry
        loss = lambda p, s: jnp.mean(  # noqa: E731
            (made.apply({"params": p, "neuron_stats": s}, batch[0]) - batch[1]) ** 2
        )
        grads, new = jax.grad(loss, (0, 1))(params, stats)
        stats = jaxnorm.update_statistics(stats, new)
        updates, state = tx.update(grads, state, params, neuron_stats=stats)
        return (optax.apply_updates(params, updates), stats, state), None

    run = jax.jit(jax.lax.scan, static_argnums=0)
    (after, _, _), _ = run(step, (params, stats, tx.init(params)), (jnp.asarray(x), jnp.asarray(y)))
    assert after["kernel"][2, 0] == params["kernel"][2, 0]
    assert abs(after["kernel"][0, 0] - 1) < 0.1


@functools.cache
def error_weighted():
    """(statistics of no batch, (statistics, gradient at z) -> those with one batch more)."""
    layer = jaxnorm.linen.Dense(
        3, gate=None, rule=Rule(weighting="error", decay=0.5), param_dtype=np.float32
    )
    x = jnp.asarray(np.random.default_rng(1).standard_normal((32, 5)) + 2, np.float32)
    variables = layer.init(jax.random.key(0), x)
    start = jaxnorm.linen.init_statistics(layer, variables, x)

    @jax.jit
    def after(stats, g):
        _, pull = jax.vjp(lambda s: layer.apply({**variables, "neuron_stats": s}, x), stats)
        return jaxnorm.update_statistics(stats, pull(g)[0])

    return start, after


@pytest.mark.parametrize("unit", [1e-12, 1e-10, 1e-5, 1e9])
def test_error_weights_in_any_unit_of_the_loss(unit):
    g = np.random.default_rng(0).standard_normal((32, 3)).astype(np.float32)
    found = []
    for scale in (1.0, unit):
        stats, after = error_weighted()
        for _ in range(2):
            stats = after(stats, g * np.float32(scale))
        found.append(jaxnorm.statistics.merging.moments(stats["statistics"]))
    assert jnp.allclose(found[0].sigma, found[1].sigma, rtol=1e-4)
    assert jnp.allclose(found[0].mean, found[1].mean, rtol=1e-4)


def test_tiny_weights():
    """Standardized steps by a spread that is about to grow are too long; with an epsilon it trains.

    Those of the plain size are not.
    """
    x = jax.random.normal(jax.random.key(0), (256, 8), jnp.float32)
    y = jnp.tanh(x[:, :1]) + 0.5
    tiny = {"kernel_init": nn.initializers.normal(1e-10), "param_dtype": jnp.float32}

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(3):
                x = nn.gelu(nn.Dense(16, **tiny)(x))
            return nn.Dense(1, **tiny)(x)

    variables = Net().init(jax.random.key(1), x)

    # Not traced: a rule whose decay is not known remembers, and takes statistics in every step.
    @functools.partial(jax.jit, static_argnums=0)
    def run(rule):
        apply = jaxnorm.linen.neuronwise(Net(), rule=rule)
        params = variables["params"]
        stats = jaxnorm.linen.init_statistics(apply, variables, x)
        tx = jaxnorm.in_neuron_coordinates(optax.adam(0.01))

        def loss(params, stats):
            return jnp.mean((apply({"params": params, "neuron_stats": stats}, x) - y) ** 2)

        def step(carry, _):
            params, stats, state = carry
            value, (grads, new) = jax.value_and_grad(loss, (0, 1))(params, stats)
            stats = jaxnorm.update_statistics(stats, new)
            updates, state = tx.update(grads, state, params, neuron_stats=stats)
            return (optax.apply_updates(params, updates), stats, state), value

        start = (params, stats, tx.init(params))
        return jax.lax.scan(step, start, None, 100)[1]

    ours = run(Rule())
    assert ours.max() <= 1.01 * ours[0]
    assert ours[-1] <= 0.1 * ours[0]
    remedied = run(Rule(step_size="standardized", epsilon=1e-3))
    # It may spike by an order while the spread grows: how much hangs on roundings, for at first
    # nothing but these varies behind the first layer.
    assert remedied.max() <= 20 * remedied[0]
    assert remedied[-1] <= 0.1 * remedied[0]
    # The limit that the pages state.
    assert not run(Rule(step_size="standardized")).max() <= 100


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("gradient", ["preconditioned", None])
def test_an_input_that_is_switched_off_could_as_well_not_be_there(gradient, bias):
    """What a mask takes away does not change the size of the others' steps."""
    rng = np.random.default_rng(0)
    x, g = (jnp.asarray(rng.standard_normal((16, 6, size))) for size in (3, 4))
    x = x.at[..., 2].multiply(100)
    mask = np.ones((1, 3, 4)) * (np.arange(3) < 2)[:, None]
    rule = Rule(damping=0.0, gradient=gradient)
    steps = []
    for inputs, given in ((x, mask), (x[..., :2], None)):
        conv = {"gate": None, "rule": rule, "mask": given, "use_bias": bias}
        layer = jaxnorm.linen.Conv(4, (1,), **conv, param_dtype=jnp.float64)
        params = layer.init(jax.random.key(0), inputs)["params"]

        def loss(params, stats, layer=layer, inputs=inputs):
            return jnp.vdot(layer.apply({"params": params, **stats}, inputs), g)

        if gradient is None:
            stats = jaxnorm.linen.init_statistics(layer, {"params": params}, inputs)
            grads, new = jax.jit(jax.grad(loss, (0, 1)))(params, {"neuron_stats": stats})
            stats = jaxnorm.update_statistics(stats, new["neuron_stats"])
            tx = jaxnorm.in_neuron_coordinates(optax.sgd(-1.0))
            grads, _ = tx.update(grads, tx.init(params), params, neuron_stats=stats)
        else:
            grads = jax.jit(jax.grad(loss))(params, {})
        steps.append(grads)
    found, expected = (step["kernel"][:, :2] for step in steps)
    assert slice_error(found, expected) <= SAME_STEP
