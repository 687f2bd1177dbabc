"""One layer of the frameworks through several steps of what changes its gradient.

No rate, no optimizer: what is returned is the gradient that the optimizer would see. The cotangent
is given, so gradients do not depend on the parameters, and steps only on what is remembered.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import linen

import jaxnorm
from parity_tests import cases
from parity_tests.cases import Case, Layer
from parity_tests.implementations import in_jax, in_torch, weights
from parity_tests.oracle import Array, Convolution, Dense
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
    """`step` (group, its memory or None) -> (weight, bias, its memory) in every group."""
    memory: dict[int, Any] = {}
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
            new, new_bias, memory[g] = step(group, memory.get(g))
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
