"""A small network under training in both frameworks, and in NumPy as published.

Starting values and data are those of `jaxnorm.tests.nets`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import linen

import jaxnorm
from jaxnorm.tests import nets as nets_optax
from parity_tests.oracle import Array
from parity_tests.steps.layer import Group
from parity_tests.tolerances import slice_error


class Network:
    """Dense, ReLU, dense, half the sum of squared errors; SGD with momentum. NumPy.

    Args:
        step: as in `published`.
    """

    def __init__(self, step: Callable[[Group, Any], Any]) -> None:
        self.step = step
        self.layers = [[np.array(w).T, np.array(b)] for w, b in nets_optax.initial()]
        self.moving = [[np.zeros_like(a) for a in layer] for layer in self.layers]
        self.memory: list[Any] = [None, None]

    def train(self, x: Array, y: Array, rate: float, momentum: float) -> None:
        """One step."""
        (first, first_bias), (last, last_bias) = self.layers
        z = x @ first.T + first_bias
        a = np.maximum(z, 0)
        error = a @ last.T + last_bias - y
        errors, inputs = [error @ last * (z > 0), error], [x, a]
        for n, (h, delta) in enumerate(zip(inputs, errors, strict=True)):
            group = Group(h, delta, delta.T @ h, delta.sum(0))
            *gradients, self.memory[n] = self.step(group, self.memory[n])
            for parameter, moving, g in zip(self.layers[n], self.moving[n], gradients, strict=True):
                moving[...] = momentum * moving + g
                parameter -= rate * moving


class Trained(NamedTuple):
    """A network of the frameworks under training, as weights [O, I] and biases."""

    layers: Callable[[], list[list[np.ndarray]]]
    train: Callable[[Array, Array], None]


class _Linen(linen.Module):
    @linen.compact
    def __call__(self, x: Any) -> Any:
        widths = nets_optax.WIDTHS
        x = linen.relu(linen.Dense(widths[1], param_dtype=np.float64)(x))
        return linen.Dense(widths[2], param_dtype=np.float64)(x)


def in_linen(tx: Any, rule: Any) -> Trained:
    """`Network` in linen and Optax."""
    apply = jaxnorm.linen.neuronwise(_Linen(), rule=rule)
    params = nets_optax.named(nets_optax.initial())
    x = jnp.zeros((2, nets_optax.WIDTHS[0]))
    now = [params, jaxnorm.linen.init_statistics(apply, {"params": params}, x), tx.init(params)]

    traced = []

    def step(params: Any, stats: Any, state: Any, x: Any, y: Any) -> Any:
        traced.append(1)

        def loss(params: Any, stats: Any) -> Any:
            z = apply({"params": params, "neuron_stats": stats}, x)
            return jnp.sum((z - y) ** 2) / 2

        grads, batch = jax.grad(loss, (0, 1))(params, stats)
        stats = jaxnorm.update_statistics(stats, batch)
        updates, state = tx.update(grads, state, params, neuron_stats=batch)
        return [optax.apply_updates(params, updates), stats, state]

    compiled: Any = jax.jit(step)

    def train(x: Array, y: Array) -> None:
        now[:] = compiled(*now, jnp.asarray(x), jnp.asarray(y))
        assert len(traced) == 1  # compiled once

    def layers() -> Any:
        return [[np.asarray(w).T, np.asarray(b)] for w, b in nets_optax.unnamed(now[0])]

    return Trained(layers, train)


def torch_network() -> torch.nn.Sequential:
    """`Network` as plain modules."""
    first, last = nets_optax.initial()
    model = torch.nn.Sequential(
        *(torch.nn.Linear(*np.shape(w), dtype=torch.float64) for w, _ in (first, last))
    )
    for layer, (w, b) in zip(model, (first, last), strict=True):
        layer.load_state_dict(
            {"weight": torch.tensor(np.array(w).T), "bias": torch.tensor(np.array(b))}
        )
    model.insert(1, torch.nn.ReLU())
    return model


def in_plain_torch(model: Any, optimizer: Any) -> Trained:
    """`Network` in PyTorch."""

    def train(x: Array, y: Array) -> None:
        optimizer.zero_grad()
        (((model(torch.tensor(x)) - torch.tensor(y)) ** 2).sum() / 2).backward()
        optimizer.step()

    def layers() -> Any:
        return [[p.detach().numpy() for p in model[n].parameters()] for n in (0, 2)]

    return Trained(layers, train)


def step_of(net: nets_optax.Network, tx: Any) -> Any:
    """(state, stats, x, y) -> (updates, state, statistics of the batch, merged), compiled."""

    @jax.jit
    def step(state: Any, stats: Any, x: Any, y: Any) -> Any:
        grads, batch = net.grads(net.params, stats, x, y)
        updates, state = tx.update(grads, state, net.params, neuron_stats=batch)
        return updates, state, batch, jaxnorm.update_statistics(stats, batch)

    return step


def batches(count: int) -> list[tuple[Array, Array]]:
    """Different ones, of unlike scales and means."""
    x, y = map(np.asarray, nets_optax.data(24 * count))
    return list(zip(np.split(x, count), np.split(y, count), strict=True))


def distance(actual: Any, expected: Any) -> float:
    """Worst error of a parameter array."""
    return max(
        slice_error(a, e, axes=())
        for one, other in zip(actual, expected, strict=True)
        for a, e in zip(one, other, strict=True)
    )
