"""The proximal term of both packages against its formula."""

from __future__ import annotations

import copy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import jaxnorm
import torchnorm
from parity_tests.tolerances import SAME_STEP, VISIBLE

RNG = np.random.default_rng(0)
START = {"w": RNG.normal(size=(3, 2)), "b": RNG.normal(size=2)}
GRADS = [{k: RNG.normal(size=v.shape) for k, v in START.items()} for _ in range(8)]
RATE, MOMENTUM = 0.2, 0.9
KNOBS = [(0.5, 3, 0.0), (0.5, 1, 0.8), (0.5, 2, 0.5), (0.0, 3, 0.0)]


def _reference(rho: float, every: int, decay: float) -> dict[str, np.ndarray]:
    """SGD with momentum, written down."""
    theta = dict(START)
    anchor, velocity = dict(START), {k: np.zeros_like(v) for k, v in START.items()}
    for step, grads in enumerate(GRADS):
        for k, g in grads.items():
            if step and step % every == 0:
                anchor[k] = decay * anchor[k] + (1 - decay) * theta[k]
            velocity[k] = MOMENTUM * velocity[k] + g + rho * (theta[k] - anchor[k])
            theta[k] = theta[k] - RATE * velocity[k]
    return theta


def _jax(rho: float, every: int, decay: float) -> dict[str, np.ndarray]:
    tx = optax.chain(jaxnorm.proximal(rho, every, decay), optax.sgd(RATE, MOMENTUM))
    theta = jax.tree.map(jnp.asarray, START)

    @jax.jit
    def run(theta, grads):
        def step(carry, g):
            theta, state = carry
            updates, state = tx.update(g, state, theta)
            return (optax.apply_updates(theta, updates), state), None

        return jax.lax.scan(step, (theta, tx.init(theta)), grads)[0][0]

    stacked = jax.tree.map(lambda *each: jnp.stack(each), *GRADS)
    return jax.tree.map(np.asarray, run(theta, stacked))


def _torch(rho: float, every: int, decay: float, *, reload: int | None = None) -> dict:
    theta = {k: torch.nn.Parameter(torch.tensor(v)) for k, v in START.items()}

    def optimizer():
        sgd = torch.optim.SGD(theta.values(), RATE, MOMENTUM)
        return torchnorm.optim.proximal(sgd, rho, every, decay)

    current = optimizer()
    for step, grads in enumerate(GRADS):
        if step == reload:
            state, current = copy.deepcopy(current.state_dict()), optimizer()
            current.load_state_dict(state)
        for k, g in grads.items():
            theta[k].grad = torch.tensor(g)
        current.step()
    return {k: v.detach().numpy() for k, v in theta.items()}


@pytest.mark.parametrize("knobs", KNOBS, ids=str)
def test_both_packages_are_the_formula(knobs):
    expected = _reference(*knobs)
    for found in (_jax(*knobs), _torch(*knobs), _torch(*knobs, reload=5)):
        for k, value in expected.items():
            assert np.abs(found[k] - value).max() <= SAME_STEP
    if knobs[0]:  # This can fail: the term does something.
        assert np.abs(_reference(0.0, *knobs[1:])["w"] - expected["w"]).max() > VISIBLE


def test_it_holds_parameters_and_can_be_taken_off():
    theta = torch.nn.Parameter(torch.zeros(1))
    optimizer = torchnorm.optim.proximal(torch.optim.SGD([theta], lr=1.0), 0.5)
    for _ in range(20):
        theta.grad = -torch.ones(1)
        optimizer.step()
    assert abs(float(theta.detach()) - 2) < VISIBLE  # slope / rho, wherever it would have gone
    torchnorm.optim.remove(optimizer)
    theta.grad = -torch.ones(1)
    optimizer.step()
    assert float(theta.detach()) > 2.9
    assert "proximal" not in optimizer.state_dict()


def test_neuron_coordinates_are_around_it():
    """The term is that of the parameters, as if it were in the loss."""
    x, y = torch.tensor(RNG.normal(size=(16, 2)) + 3), torch.tensor(RNG.normal(size=(16, 1)))
    results = []
    for inside in (False, True):
        layer = torchnorm.Linear(2, 1, gate=None, dtype=torch.float64)
        layer.load_state_dict({"weight": torch.ones(1, 2), "bias": torch.zeros(1)})
        start = {k: v.detach().clone() for k, v in layer.named_parameters()}
        optimizer = torch.optim.SGD(layer.parameters(), 0.01)
        if not inside:
            torchnorm.optim.proximal(optimizer, 0.5)
        torchnorm.optim.in_neuron_coordinates(optimizer, layer)
        for _ in range(4):
            optimizer.zero_grad()
            ((layer(x) - y) ** 2).mean().backward()
            if inside:
                for k, each in layer.named_parameters():
                    each.grad += 0.5 * (each.detach() - start[k])
            optimizer.step()
        results.append(torch.cat([layer.weight.ravel(), layer.bias]).detach().numpy())
    assert np.abs(results[0] - results[1]).max() <= SAME_STEP
    state = optimizer.state_dict()
    assert "neuron_stats" in state
    assert "proximal" not in state


def test_low_precision_has_anchors_in_float32():
    theta = jnp.ones(2, jnp.bfloat16)
    tx = jaxnorm.proximal(0.5, 1, 0.9)
    updates, state = tx.update(theta, tx.init(theta), theta)
    assert (updates.dtype, state.anchor.dtype) == (jnp.bfloat16, jnp.float32)
    parameter = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    optimizer = torchnorm.optim.proximal(torch.optim.SGD([parameter], 0.1), 0.5, 1, 0.9)
    assert optimizer.state_dict()["proximal"]["anchors"][0].dtype == torch.float32


@pytest.mark.parametrize(
    "args", [(-1.0,), (float("inf"),), ("much",), (1.0, 0), (1.0, 2.5), (1.0, 1), (1.0, 2, 1.0)]
)
def test_bad_knobs_are_refused_in_the_same_words(args):
    with pytest.raises((TypeError, ValueError)) as error:
        jaxnorm.proximal(*args)
    with pytest.raises(error.type) as other:
        torchnorm.optim.proximal(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], 0.1), *args)
    assert str(error.value) == str(other.value)


def test_states_of_others_and_second_terms_are_refused():
    parameter = torch.nn.Parameter(torch.ones(1))
    plain = torch.optim.SGD([parameter], 0.1).state_dict()
    optimizer = torchnorm.optim.proximal(torch.optim.SGD([parameter], 0.1), 0.5)
    with pytest.raises(ValueError, match="state_dict: got one without 'proximal'"):
        optimizer.load_state_dict(plain)
    with pytest.raises(ValueError, match="got one with proximal already"):
        torchnorm.optim.proximal(optimizer, 0.5)
    with pytest.raises(ValueError, match="params: got None"):
        jaxnorm.proximal(0.5).update(jnp.ones(1), jaxnorm.proximal(0.5).init(jnp.ones(1)))
