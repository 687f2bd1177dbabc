"""Functions in which one thing is easily taken for another."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxnorm
from jaxnorm import DEFERRED, Rule, neuronwise_conv, neuronwise_dense, tell_gate
from jaxnorm.statistics import merging
from jaxnorm.tests.program.test_neuronwise import (
    X,
    assert_same,
    by_hand,
    float64,  # noqa: F401
    normal,
    recorded,
    told,
)


def left(fn, params, x=X):
    """Path of a parameter -> why it is no layer."""
    return {row.layer: row.reason for row in jaxnorm.find_gates(fn, params, x).left}


def test_one_kernel_in_two_roles_is_left_alone():
    def other_inputs(w, x):
        a = jnp.einsum("bi,ijk->bjk", x[:, :3], w)
        return jnp.einsum("bij,ijk->bk", a[:, :3, :4], w)

    def once_in_groups(w, x):
        x = jnp.stack([x, x, x])
        return jnp.einsum("ebi,eio->ebo", x, w), jnp.einsum("ebi,eio->bo", x, w)

    def a_stack_and_one(w, x):
        return x @ w[0], jnp.einsum("bi,eio->beo", x, w)

    roles = "its axes are inputs in one product, and neurons in another"
    assert left(other_inputs, normal(1, 3, 4, 5)) == {"": roles}
    assert left(once_in_groups, normal(1, 3, 5, 4)) == {"": roles}
    assert left(a_stack_and_one, normal(1, 3, 5, 4)) == {
        "": "it is used as a stack of layers, and as one"
    }

    def carried_too(w, x):  # in the second round the carried one is another
        def step(carry, _):
            return (jnp.tanh(carry[0] @ w + carry[0] @ carry[1]), carry[1] / 2), None

        return jax.lax.scan(step, (x, w), None, 2)[0][0]

    assert left(carried_too, normal(1, 5, 5)) == {"": "it is read by scan too"}


def test_a_kernel_joined_with_itself_has_the_slopes_of_both():
    kernel, shift = normal(1, 5, 4), np.linspace(-2, 2, 8)

    def fn(w, x):
        return jax.nn.relu(x @ jnp.concatenate([w, w], 1) - shift)

    batch, _ = recorded(fn, kernel, X)

    def layer(s):
        parts = []
        for part in (shift[:4], shift[4:]):
            made = neuronwise_dense(X, kernel, gate=DEFERRED, statistics=s)
            parts.append(tell_gate(*made, slope=1.0 * (made[0] > part)))
        return parts[0] + 2 * parts[1]

    assert_same(batch[""], by_hand(layer))


def test_a_value_joined_with_itself_has_the_slopes_of_both():
    kernel, bias, other = normal(1, 5, 4), normal(2, 4), normal(3, 24, 8)

    def fn(p, x):
        z = x @ p["w"] + p["b"]
        return jax.nn.relu(jnp.concatenate([z, z], 1) + other)

    batch, _ = recorded(fn, {"w": kernel, "b": bias}, X)
    expected = told(
        X, kernel, bias, lambda z: 1.0 * (z > -other[:, :4]) + 1.0 * (z > -other[:, 4:])
    )
    assert_same(batch["w"], expected)


def test_joined_kernels_have_the_gates_that_are_given_to_each():
    params = {"w": normal(1, 5, 4), "v": normal(2, 5, 3)}

    def fn(p, x):
        return x @ jnp.concatenate([p["w"], p["v"]], 1)

    batch, _ = recorded(fn, params, X, gates={"w": "relu", "v": "tanh"})
    assert_same(batch["w"], told(X, params["w"], None, lambda z: z > 0))
    assert_same(batch["v"], told(X, params["v"], None, lambda z: 1 - jnp.tanh(z) ** 2))


@pytest.mark.parametrize("loss", ["square", "absolute", "huber"])
def test_a_loss_is_no_activation(loss):
    function = {"square": jnp.square, "absolute": jnp.abs, "huber": optax.losses.huber_loss}[loss]
    y = normal(4, 24, 4)
    row = jaxnorm.find_gates(lambda w, x: jnp.mean(function(x @ w - y)), normal(1, 5, 4), X)[""]
    assert (row.gate, row.unresolved) == (None, False)
    # Squares that the next layer reads are an activation.
    params = {"w": normal(1, 5, 4), "v": normal(2, 24, 3)}
    report = jaxnorm.find_gates(lambda p, x: function(x @ p["w"]).sum(1) @ p["v"], params, X)
    assert report["w"].gate is not None


@pytest.mark.parametrize("of", ["layer", "batch"])
def test_the_size_of_the_batch_changes_no_gate(of):
    params = {"w": normal(1, 5, 4), "scale": normal(2, 4), "v": normal(3, 4, 2)}

    def fn(p, x):
        z = x @ p["w"]
        axis = z.ndim - 1 if of == "layer" else 0
        z = (z - z.mean(axis, keepdims=True)) / jnp.sqrt(z.var(axis, keepdims=True) + 1e-5)
        return z * (1 + p["scale"]) @ p["v"]

    reports = [jaxnorm.find_gates(fn, params, x) for x in (X, X[:1])]
    assert [row.gate for report in reports for row in report.rows] == [None] * 4
    stats = jaxnorm.init_statistics(fn, params, X[:1])
    jaxnorm.neuronwise(fn)(params, X, neuron_stats=stats)


@pytest.mark.parametrize("inner", [False, True])
def test_an_ensemble_of_convolutions(inner):
    x, kernel, bias = normal(0, 2, 4, 3, 3) + 1, normal(1, 3, 2, 2, 3, 3), normal(2, 3, 3)

    def conv(w, b, x):
        z = jax.lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.tanh(z + b)

    def one(w, b, x):
        return jax.vmap(lambda x: conv(w, b, x[None])[0])(x) if inner else conv(w, b, x)

    def fn(p, x):
        return jax.vmap(one, (0, 0, None))(p["w"], p["b"], x)

    batch, _ = recorded(fn, {"w": kernel, "b": bias}, x)
    assert batch["w"].bias_path == ("b",)
    got = merging.moments(batch["w"]).mean.reshape(12, 3, 3)
    for n in range(3):
        settings = {"strides": 1, "padding": "SAME", "gate": "tanh"}
        expected = by_hand(
            lambda s, n=n, settings=settings: neuronwise_conv(
                x, kernel[n], bias[n], statistics=s, **settings
            )
        )
        mean = merging.moments(expected).mean.reshape(12, 3)
        np.testing.assert_allclose(got[:, n], mean, rtol=1e-10)


def test_statistics_of_some_rows():
    rule, kernel = Rule(statistics_rows=3), normal(1, 5, 4)
    expected = by_hand(lambda s: neuronwise_dense(X, kernel, gate="silu", rule=rule, statistics=s))
    assert int(expected.rows_mass.sum()) < len(X)
    batch, _ = recorded(lambda w, x: jax.nn.silu(x @ w), kernel, X, rule=rule)
    assert_same(batch[""], expected)
    batch, _ = recorded(lambda w, x: jax.nn.silu(w @ x.T), kernel.T, X, rule=rule)
    assert_same(batch[""], expected)


def test_two_parameters_of_one_name():
    params = {"a/b": {"w": normal(1, 5, 4)}, "a": {"b/w": normal(2, 4, 3)}}
    with pytest.raises(ValueError, match="params: got two arrays at 'a/b/w', expected one"):
        jaxnorm.find_gates(lambda p, x: x @ p["a/b"]["w"] @ p["a"]["b/w"], params, X)


def test_updates_with_params_on_top_or_without():
    params = {"w": normal(1, 5, 4), "b": normal(2, 4)}

    def fn(p, x):
        return jnp.tanh(x @ p["w"] + p["b"])

    tx, updates = jaxnorm.in_neuron_coordinates(optax.sgd(0.1)), []
    for f, given in ((fn, params), (lambda v, x: fn(v["params"], x), {"params": params})):
        stats = jaxnorm.init_statistics(f, given, X)
        f = jaxnorm.neuronwise(f)
        batch = jax.grad(lambda s, f=f, given=given: jnp.sum(f(given, X, neuron_stats=s)))(stats)
        stats = jaxnorm.update_statistics(stats, batch)
        for tree in (params, {"params": params}):
            found, _ = tx.update(tree, tx.init(tree), tree, neuron_stats=stats)
            updates.append(found.get("params", found))
    for each in updates[1:]:
        jax.tree.map(np.testing.assert_array_equal, each, updates[0])
