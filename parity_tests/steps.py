"""One layer of the frameworks through several steps of what changes its gradient.

No rate, no optimizer: what is returned is the gradient that the optimizer would see. The cotangent
is given, so gradients do not depend on the parameters, and steps only on what is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import linen

import jaxnorm
from jaxnorm.tests import nets as nets_optax
from parity_tests import cases, in_jax, in_torch, weights
from parity_tests.cases import Case, Layer
from parity_tests.oracle import Array
from parity_tests.patches import Convolution, Dense
from parity_tests.tolerances import slice_error

#: How many steps are compared.
STEPS = 4


class Gradient(NamedTuple):
    """What a layer's optimizer sees, in the layout of the case."""

    kernel: np.ndarray
    bias: Any  # None without a bias


class Group(NamedTuple):
    """One batch of a dense layer, or of one group of any other: what published code is given.

    Attributes:
        h: inputs, or patches, [N, I].
        delta: errors [N, O].
        weight: the gradient [O, I].
        bias: the gradient [O], or None.
        mask: [O, I], 0 where there is no weight.
    """

    h: Array
    delta: Array
    weight: Array
    bias: Any
    mask: Any = 1.0


def several(layer: Layer | None, family: str, count: int = STEPS) -> list[Case]:
    """One case for each step, of the same shapes."""
    return [cases.make(family, layer=layer, seed=seed, gate=None) for seed in range(count)]


def published(steps: list[Case], step: Callable[[Group, Any], Any]) -> list[Gradient]:
    """`step` (group, what was kept or None) -> (weight, bias, what to keep) in every group."""
    kept: dict[int, Any] = {}
    found = []
    for case in steps:
        view, kernel = case.view, np.zeros(case.kernel.shape)
        bias = None if case.bias is None else np.zeros(case.bias.shape)
        patches, errors = view.patches(case.x), case.delta.ravel()[view.z]
        for g in range(patches.shape[1]):
            h, delta = patches[:, g], errors[:, g]
            mask = 1.0 if case.mask is None else case.mask.ravel()[view.kernel[:, g]].T
            plain_bias = None if bias is None else delta.sum(0)
            group = Group(h, delta, delta.T @ h * mask, plain_bias, mask)
            new, new_bias, kept[g] = step(group, kept.get(g))
            kernel.flat[view.kernel[:, g]] = new.T
            if bias is not None:
                bias.flat[view.bias[g]] = new_bias
        found.append(Gradient(kernel, bias))
    return found


def optax_side(steps: list[Case], tx: Any, rule: Any, *, merged: bool = False) -> list[Gradient]:
    """By a layer of Flax under `neuronwise`, and `tx`."""
    case = steps[0]
    apply = jaxnorm.linen.neuronwise(in_jax.linen(case, linen, {}), rule=rule)
    named = {"kernel": case.kernel, "bias": case.bias}
    params = {name: jnp.asarray(value) for name, value in named.items() if value is not None}
    stats = jaxnorm.linen.init_statistics(apply, {"params": params}, jnp.asarray(case.x))

    @jax.jit
    def step(state: Any, stats: Any, x: Any, delta: Any) -> Any:
        def run(params: Any, stats: Any) -> Any:
            return apply({"params": params, "neuron_stats": stats}, x)

        grads, batch = jax.vjp(run, params, stats)[1](delta)
        stats = jaxnorm.update_statistics(stats, batch)
        updates, state = tx.update(grads, state, params, neuron_stats=stats if merged else batch)
        return updates, state, stats

    state, found = tx.init(params), []
    for case in steps:
        updates, state, stats = step(state, stats, jnp.asarray(case.x), jnp.asarray(case.delta))
        bias = np.asarray(updates["bias"]) if "bias" in updates else None
        found.append(Gradient(np.asarray(updates["kernel"]), bias))
    return found


def torch_side(steps: list[Case], around: Callable[[Any, Any], Any]) -> list[Gradient]:
    """By a module of PyTorch and `around` (optimizer, model)."""
    case = steps[0]
    layer, before = in_torch.module(case, torch.nn, {})
    optimizer = around(torch.optim.SGD(layer.parameters(), 0.0), layer)
    back = np.asarray
    if isinstance(case.op, Dense | Convolution):
        inputs, outputs = case.kernel.shape[-2:]
        back = partial(weights.to_flax, inputs=inputs, outputs=outputs)
    found = []
    for case in steps:
        optimizer.zero_grad()
        x = in_torch.channels_first(torch.tensor(case.x), case)
        z = in_torch.channels_last(layer(x if before is None else before(x)), case)
        z.backward(torch.tensor(case.delta))
        optimizer.step()
        bias = None if case.bias is None else layer.bias.grad.numpy().copy()
        found.append(Gradient(back(layer.weight.grad.numpy()), bias))
    return found


def error(steps: list[Case], actual: list[Gradient], expected: list[Gradient]) -> float:
    """Worst error of a neuron's gradient in any step."""
    worst = 0.0
    for case, a, b in zip(steps, actual, expected, strict=True):
        kernels = (case.view.by_neuron(g.kernel) for g in (a, b))
        worst = max(worst, slice_error(*kernels))
        if b.bias is not None:
            # A sum that may cancel, over everything that the neuron reads.
            worst = max(worst, slice_error(a.bias, b.bias, axes=()))
    return worst


class Network:
    """Dense, ReLU, dense, half the sum of squared errors; SGD with momentum. NumPy.

    Args:
        step: as in `published`.
    """

    def __init__(self, step: Callable[[Group, Any], Any]) -> None:
        self.step = step
        self.layers = [[np.array(w).T, np.array(b)] for w, b in nets_optax.initial()]
        self.moving = [[np.zeros_like(a) for a in layer] for layer in self.layers]
        self.kept: list[Any] = [None, None]

    def train(self, x: Array, y: Array, rate: float, momentum: float) -> None:
        """One step."""
        (first, first_bias), (last, last_bias) = self.layers
        z = x @ first.T + first_bias
        a = np.maximum(z, 0)
        error = a @ last.T + last_bias - y
        errors, inputs = [error @ last * (z > 0), error], [x, a]
        for n, (h, delta) in enumerate(zip(inputs, errors, strict=True)):
            group = Group(h, delta, delta.T @ h, delta.sum(0))
            *gradients, self.kept[n] = self.step(group, self.kept[n])
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
