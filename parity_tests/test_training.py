"""Training in lock-step: one network in NumPy, linen, nnx and torch, compared after every step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import linen, nnx

import jaxnorm
import torchnorm
from parity_tests import oracle
from parity_tests.implementations import weights
from parity_tests.oracle import Array, Knobs
from parity_tests.tolerances import GATE, TRAINING_GROWTH, slice_error

WIDTHS = (5, 8, 7, 3)
GATES = ("relu", "silu", None)
#: SGD with momentum on the gradient itself, which is what the oracle's network does.
FORM: dict[str, Any] = {"gradient": "preconditioned"}
RATE, MOMENTUM, STEPS = 0.02, 0.9, 10

Parameters = list[tuple[Array, Array]]
Train = Callable[[Array, Array], Iterator[Parameters]]


def _data() -> tuple[Array, Array]:
    """Inputs of very different scales, and something to learn from them."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((40, WIDTHS[0])) + 1) * np.exp(rng.standard_normal(WIDTHS[0]))
    return x, np.sin(x @ rng.standard_normal((WIDTHS[0], WIDTHS[-1])))


def _initial() -> Parameters:
    """Kernels [I,O] and biases for everyone."""
    rng = np.random.default_rng(1)
    return [
        (rng.standard_normal((i, o)) / np.sqrt(i), 0.1 * rng.standard_normal(o))
        for i, o in pairwise(WIDTHS)
    ]


def _oracle(x: Array, y: Array) -> Iterator[Parameters]:
    """The mean of squared errors, by hand: forward, backward, heavy ball."""
    parameters = _initial()
    velocity = [(np.zeros_like(k), np.zeros_like(b)) for k, b in parameters]
    for _ in range(STEPS):
        inputs, slopes, a = [], [], x
        for (kernel, bias), gate in zip(parameters, GATES, strict=True):
            inputs.append(a)
            z = a @ kernel + bias
            activation, slope = oracle.GATES[gate or "identity"]
            a, slopes = activation(z), [*slopes, slope(z)]
        g, gradients = 2 * (a - y) / y.size, []
        for n in reversed(range(len(parameters))):
            layer = oracle.dense(inputs[n], *parameters[n], g * slopes[n], GATES[n], Knobs())
            gradients.insert(0, (layer.g_kernel, layer.g_bias))
            g = layer.g_x
        velocity = [
            (MOMENTUM * vk + gk, MOMENTUM * vb + gb)
            for (vk, vb), (gk, gb) in zip(velocity, gradients, strict=True)
        ]
        parameters = [
            (k - RATE * vk, b - RATE * vb)
            for (k, b), (vk, vb) in zip(parameters, velocity, strict=True)
        ]
        yield parameters


class _LinenNetwork(linen.Module):
    """Three layers, named by linen."""

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Layer, activation, layer, activation, layer."""
        for width, gate in zip(WIDTHS[1:], GATES, strict=True):
            kwargs: Any = {"rule": jaxnorm.Rule(**FORM), "param_dtype": jnp.float64}
            x = jaxnorm.linen.Dense(width, gate=gate, **kwargs)(x)
            x = x if gate is None else getattr(jax.nn, gate)(x)
        return x


def _linen(x: Array, y: Array) -> Iterator[Parameters]:
    """Flax linen and Optax, under jit."""
    network, optimizer = _LinenNetwork(), optax.sgd(RATE, MOMENTUM)
    parameters = {
        f"Dense_{n}": {"kernel": jnp.asarray(k), "bias": jnp.asarray(b)}
        for n, (k, b) in enumerate(_initial())
    }
    state = optimizer.init(parameters)

    @jax.jit
    def step(parameters, state):
        def loss(parameters):
            output: Any = network.apply({"params": parameters}, x)
            return jnp.mean((output - y) ** 2)

        updates, state = optimizer.update(jax.grad(loss)(parameters), state)
        return optax.apply_updates(parameters, updates), state

    for _ in range(STEPS):
        parameters, state = step(parameters, state)
        yield [(np.asarray(p["kernel"]), np.asarray(p["bias"])) for p in parameters.values()]


class _NnxNetwork(nnx.Module):
    """Three layers in a list."""

    def __init__(self) -> None:
        kwargs: Any = {
            "rule": jaxnorm.Rule(**FORM),
            "param_dtype": jnp.float64,
            "rngs": nnx.Rngs(0),
        }
        self.layers = nnx.List(
            jaxnorm.nnx.Linear(i, o, gate=gate, **kwargs)
            for i, o, gate in zip(WIDTHS[:-1], WIDTHS[1:], GATES, strict=True)
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Layer, activation, layer, activation, layer."""
        for layer, gate in zip(self.layers, GATES, strict=True):
            x = layer(x)
            x = x if gate is None else getattr(jax.nn, gate)(x)
        return x


def _nnx(x: Array, y: Array) -> Iterator[Parameters]:
    """Flax nnx with its own optimizer, under jit."""
    network = _NnxNetwork()
    for layer, (kernel, bias) in zip(network.layers, _initial(), strict=True):
        nnx.update(layer, {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)})
    optimizer = nnx.Optimizer(network, optax.sgd(RATE, MOMENTUM), wrt=nnx.Param)

    @nnx.jit
    def step(network: _NnxNetwork, optimizer: nnx.Optimizer) -> None:
        def loss(network: _NnxNetwork) -> jax.Array:
            return jnp.mean((network(jnp.asarray(x)) - y) ** 2)

        optimizer.update(network, nnx.grad(loss)(network))

    for _ in range(STEPS):
        step(network, optimizer)
        read = (nnx.to_pure_dict(nnx.state(layer, nnx.Param)) for layer in network.layers)
        yield [(np.asarray(p["kernel"]), np.asarray(p["bias"])) for p in read]


def _torch(x: Array, y: Array) -> Iterator[Parameters]:
    """PyTorch and its own optimizer."""
    layers, modules = [], []
    for gate, (kernel, bias) in zip(GATES, _initial(), strict=True):
        i, o = kernel.shape
        rule = torchnorm.Rule(**FORM)
        layer = torchnorm.Linear(i, o, dtype=torch.float64, gate=gate, rule=rule)
        weight = torch.tensor(weights.to_torch(kernel, inputs=i, outputs=o))
        layer.load_state_dict({"weight": weight, "bias": torch.tensor(bias)})
        layers.append(layer)
        activation = {"relu": [torch.nn.ReLU()], "silu": [torch.nn.SiLU()], None: []}[gate]
        modules += [layer, *activation]
    network = torch.nn.Sequential(*modules)
    optimizer = torch.optim.SGD(network.parameters(), RATE, momentum=MOMENTUM)
    inputs, targets = torch.tensor(x), torch.tensor(y)
    for _ in range(STEPS):
        optimizer.zero_grad()
        ((network(inputs) - targets) ** 2).mean().backward()
        optimizer.step()
        yield [_read(layer) for layer in layers]


def _read(layer: torch.nn.Linear) -> tuple[Array, Array]:
    """Kernel [I,O] and bias of a torch layer."""
    weight, bias = (p.detach().numpy().copy() for p in (layer.weight, layer.bias))
    kernel = weights.to_flax(weight, inputs=layer.in_features, outputs=layer.out_features)
    return kernel, bias


@pytest.mark.parametrize("train", [_linen, _nnx, _torch])
def test_every_step_is_the_oracles(train: Train) -> None:
    """Parameters after each of the steps; rounding errors may grow with their number, no more."""
    pairs = zip(train(*_data()), _oracle(*_data()), strict=True)
    for number, (actual, expected) in enumerate(pairs, start=1):
        gate = GATE["float64"] * TRAINING_GROWTH * number
        for (kernel, bias), (right_kernel, right_bias) in zip(actual, expected, strict=True):
            assert slice_error(kernel, right_kernel, axes=(0, 1)) <= gate, number
            assert slice_error(bias, right_bias, axes=()) <= gate, number


def test_the_oracle_learns() -> None:
    """A comparison of networks that stand still would prove nothing."""
    x, y = _data()

    def loss(parameters: Parameters) -> float:
        a = x
        for (kernel, bias), gate in zip(parameters, GATES, strict=True):
            a = oracle.GATES[gate or "identity"][0](a @ kernel + bias)
        return float(np.mean((a - y) ** 2))

    *_, last = _oracle(x, y)
    assert loss(last) < 0.8 * loss(_initial())
