"""Equinox and Haiku: any function of parameters, whatever made them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxnorm

X = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32) + 2


@pytest.fixture(autouse=True)
def broadcasting():
    """As the libraries write it."""
    with jax.numpy_rank_promotion("allow"):
        yield


def trained(fn, params, steps=2):
    """The parameters after a few steps of AdamW in the neurons' coordinates."""
    f = jaxnorm.neuronwise(fn)
    stats = jaxnorm.init_statistics(f, params, X)
    tx = jaxnorm.in_neuron_coordinates(optax.adamw(0.01))
    state = tx.init(params)

    @jax.jit
    def step(params, stats, state):
        def loss(params, stats):
            return jnp.mean((f(params, X, neuron_stats=stats) - 1) ** 2)

        grads, batch = jax.grad(loss, argnums=(0, 1))(params, stats)
        stats = jaxnorm.update_statistics(stats, batch)
        updates, state = tx.update(grads, state, params, neuron_stats=stats)
        return optax.apply_updates(params, updates), stats, state

    for _ in range(steps):
        params, stats, state = step(params, stats, state)
    return params


def bare(params, x):
    """Two layers, [I, O]."""
    h = jax.nn.relu(x @ params["a"]["w"] + params["a"]["b"])
    return h @ params["b"]["w"] + params["b"]["b"]


def close(got, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), got, expected)


def test_an_equinox_module_trains_as_its_arrays_would():
    eqx = pytest.importorskip("equinox", reason="Equinox is not installed")
    model = eqx.nn.MLP(5, 3, 8, 1, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    got = trained(lambda params, x: jax.vmap(eqx.combine(params, static))(x), params)
    layers = {"a": model.layers[0], "b": model.layers[1]}
    arrays = {name: {"w": layer.weight.T, "b": layer.bias} for name, layer in layers.items()}
    expected = trained(bare, arrays)
    for name, layer in {"a": got.layers[0], "b": got.layers[1]}.items():
        close({"w": layer.weight.T, "b": layer.bias}, expected[name])


def test_equinox_layers():
    eqx = pytest.importorskip("equinox", reason="Equinox is not installed")
    keys = jax.random.split(jax.random.key(0), 4)

    class Model(eqx.Module):
        conv: eqx.nn.Conv1d
        norm: eqx.nn.GroupNorm
        attention: eqx.nn.MultiheadAttention
        cell: eqx.nn.GRUCell

        def __call__(self, x):
            x = jax.nn.gelu(self.norm(self.conv(x))).T
            x = x + self.attention(x, x, x, inference=True)
            return jax.lax.scan(lambda h, x: (self.cell(x, h), None), jnp.zeros(6), x)[0]

    model = Model(
        eqx.nn.Conv1d(3, 8, 3, padding=1, key=keys[0]),
        eqx.nn.GroupNorm(2, 8),
        eqx.nn.MultiheadAttention(2, 8, key=keys[1]),
        eqx.nn.GRUCell(8, 6, key=keys[2]),
    )
    params, static = eqx.partition(model, eqx.is_inexact_array)
    x = jnp.ones((4, 3, 7))
    fn = lambda params, x: jax.vmap(eqx.combine(params, static))(x)  # noqa: E731
    report = jaxnorm.find_gates(fn, params, x)
    assert {row.layer: str(row.gate) for row in report.rows} == {
        "conv/weight": "gelu",
        **{f"attention/{name}_proj/weight": "None" for name in ("query", "key", "value", "output")},
        "cell/weight_ih": "sigmoid and tanh",
        "cell/weight_hh": "sigmoid and tanh",
    }
    assert not report.unresolved
    stats = jaxnorm.init_statistics(fn, params, x)
    f = jaxnorm.neuronwise(fn)
    batch = jax.grad(lambda stats: jnp.sum(f(params, x, neuron_stats=stats)))(stats)
    samples = {name: float(each.samples) for name, each in batch.items()}
    assert samples == {row.layer: 28.0 for row in report.rows}  # 4 examples, 7 positions


def test_a_haiku_function_trains_as_its_arrays_would():
    hk = pytest.importorskip("haiku", reason="Haiku is not installed")
    model = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([8, 3])(x)))
    params = model.init(jax.random.key(0), X)
    got = trained(model.apply, params)
    names = {"a": "mlp/~/linear_0", "b": "mlp/~/linear_1"}
    expected = trained(bare, {short: params[name] for short, name in names.items()})
    close({short: got[name] for short, name in names.items()}, expected)
