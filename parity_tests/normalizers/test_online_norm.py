"""Online Normalization: the order of time, and the state of its backward pass."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import jaxnorm
import jaxnorm.normalizers as of_jax
import torchnorm.normalizers as of_torch
from jaxnorm.nnx.normalizers import BackwardStat, add_backward_stats
from parity_tests.tolerances import SAME_STEP

RNG = np.random.default_rng(0)
X, DELTA = RNG.normal(size=(2, 6, 4, 3)) * [0.5, 1.0, 2.0]
STATE = np.array([[0.1, -0.3, 0.2], [0.8, 1.3, 0.5]])
CONTROL = RNG.normal(size=(2, 3))
#: Old weights of both momenta, as JAX takes them.
MOMENTA = 0.9, 0.8


@functools.partial(jax.jit, static_argnums=4)
def _program(x: Any, delta: Any, state: Any, control: Any, momenta: Any) -> Any:
    old = of_jax.OnlineControl(*control)

    def run(x: Any, control: Any) -> Any:
        knobs = {"momentum": momenta[0], "backward_momentum": momenta[1], "guard": None}
        return of_jax.online_norm(x, of_jax.OnlineState(*state), control, train=True, **knobs)

    y, pull, new = jax.vjp(run, x, old, has_aux=True)
    g_x, added = pull(delta)
    return y, g_x, jnp.stack(new), jnp.stack(jax.tree.map(jnp.add, old, added))


def _jax(x: Any, delta: Any, state: Any, control: Any, momenta: Any = MOMENTA) -> Any:
    """Output, gradient, both states."""
    state = np.asarray(state, np.float64)
    return [np.asarray(each) for each in _program(x, delta, state, control, momenta)]


def _torch(x: Any, delta: Any, state: Any, control: Any, momenta: Any = MOMENTA) -> Any:
    inputs = torch.tensor(x).movedim(-1, 1).requires_grad_()
    beside = of_torch.OnlineControl(*torch.tensor(control))
    before = of_torch.OnlineState(*torch.tensor(np.asarray(state, np.float64)))
    knobs = {"momentum": 1 - momenta[0], "backward_momentum": 1 - momenta[1], "guard": None}
    y, new = of_torch.online_norm(inputs, before, beside, training=True, **knobs)
    (g_x,) = torch.autograd.grad(y, inputs, torch.tensor(delta).movedim(-1, 1))
    out = y.detach().movedim(1, -1), g_x.movedim(1, -1)
    return *(each.numpy() for each in out), np.stack(new), np.stack(beside)


@pytest.mark.parametrize("run", [_jax, _torch])
def test_a_batch_is_its_samples_one_after_the_other(run: Any) -> None:
    y, g_x, state, control = run(X, DELTA, STATE, CONTROL)
    parts, now, beside = [], STATE, CONTROL
    for part in (slice(0, 3), slice(3, 6)):
        *out, now, beside = run(X[part], DELTA[part], now, beside)
        parts.append(out)
    for whole, pieces in zip((y, g_x), zip(*parts, strict=True), strict=True):
        np.testing.assert_allclose(np.concatenate(pieces), whole, rtol=SAME_STEP)
    np.testing.assert_allclose(now, state, rtol=SAME_STEP)
    np.testing.assert_allclose(beside, control, rtol=SAME_STEP)


@pytest.mark.parametrize("run", [_jax, _torch])
def test_without_control_the_gradient_is_the_derivative(run: Any) -> None:
    y, g_x, _, _ = run(X, DELTA, STATE, CONTROL, (0.9, 1.0))
    step = 1e-6
    moved = run(X + step * DELTA[::-1], DELTA, STATE, CONTROL, (0.9, 1.0))[0]
    # Of one sample at a time: the statistics of those before are constants.
    first = ((moved - y)[0] * DELTA[0]).sum() / step
    assert abs((g_x[0] * DELTA[::-1][0]).sum() - first) <= 1e-6 * abs(first)


@pytest.mark.parametrize("run", [_jax, _torch])
def test_what_is_taken_off_is_what_was_there(run: Any) -> None:
    """The sum of all gradients is what U has grown by, so that their mean goes to 0."""
    _, g_x, _, control = run(X, DELTA, STATE, CONTROL)
    grown = g_x.mean(1).sum(0)
    np.testing.assert_allclose(control[0] - CONTROL[0], grown, rtol=SAME_STEP, atol=1e-12)
    repeated = np.ones((3000, 1, 3)) + 0.1 * RNG.normal(size=(3000, 1, 3))
    _, g_x, _, _ = run(RNG.normal(size=(3000, 1, 3)), repeated, [[0] * 3, [1] * 3], 0 * CONTROL)
    assert np.abs(g_x[1000:].mean((0, 1))).max() < 0.01 * np.abs(g_x[0]).max()


def test_jax_adds_up_the_states_of_the_backward_pass() -> None:
    layer = jaxnorm.linen.normalizers.OnlineNorm(use_running_average=False, guard=None)
    variables = jax.jit(layer.init)(jax.random.key(0), X)
    beside = variables["backward_stats"]

    def calls(beside: Any, times: int) -> Any:
        given = {**variables, "backward_stats": beside}
        every = [layer.apply(given, X, mutable=["batch_stats"])[0] for _ in range(times)]
        return sum((jnp.sum(y * DELTA) for y in every), jnp.zeros(()))

    none, one, two = (jax.jit(jax.grad(calls), static_argnums=1)(beside, n) for n in range(3))
    assert not any(map(np.any, jax.tree.leaves(none)))
    assert all(map(np.all, jax.tree.leaves(one)))
    np.testing.assert_allclose(two["gradient"], 2 * one["gradient"], rtol=SAME_STEP)
    del variables["backward_stats"]
    with pytest.raises(ValueError, match="backward_stats: got none in training"):
        layer.apply(variables, X, mutable=["batch_stats"])


def test_evaluation_needs_no_state_of_the_backward_pass() -> None:
    layer = jaxnorm.linen.normalizers.OnlineNorm(use_running_average=True)
    variables = layer.init(jax.random.key(0), X)
    assert sorted(variables) == ["backward_stats", "batch_stats", "params"]
    del variables["backward_stats"]
    assert layer.apply(variables, X).shape == X.shape


def test_nnx_adds_what_the_gradients_bring() -> None:
    model = nnx.Sequential(jaxnorm.nnx.normalizers.OnlineNorm(3, rngs=nnx.Rngs(0)))
    by = nnx.DiffState(0, nnx.Any(nnx.Param, BackwardStat))
    grads = nnx.grad(lambda model: jnp.sum(model(jnp.asarray(X)) * DELTA), argnums=by)(model)
    params, added = nnx.split_state(grads, nnx.Param, BackwardStat)
    add_backward_stats(model, added)
    add_backward_stats(model, added)
    found = model.layers[0].gradient[...]
    np.testing.assert_allclose(found, 2 * added["layers"][0]["gradient"][...], rtol=1e-6)
    assert np.all(np.asarray(found) != 0)
    with pytest.raises(ValueError, match="added: got "):
        add_backward_stats(model, params)


def test_torch_writes_its_state_in_the_backward_pass() -> None:
    layer = of_torch.OnlineNorm(3).double()
    x = torch.tensor(X).movedim(-1, 1).requires_grad_()
    y = layer(x)
    assert not layer.running_gradient.any()
    y.backward(torch.tensor(DELTA).movedim(-1, 1))
    assert layer.running_gradient.all()
    once = layer.running_gradient.clone()
    layer.eval()
    layer(x).sum().backward()
    assert torch.equal(layer.running_gradient, once)
