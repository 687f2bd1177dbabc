"""Training a network of `flax_networks`."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxnorm
from parity_tests.models.flax_networks import LINEN, NNX, RESEARCH, TASKS
from parity_tests.models.training import LAST, STEPS


def trial(library: str, name: str, seed: int, rate: float, ours: bool) -> float:
    """The loss in the end; see `training`.

    Args:
        library: "linen" or "nnx".
        name: of a network with a task.
        seed: of the initial parameters, the batches and dropout.
        rate: of AdamW.
        ours: whether in neuron coordinates.
    """
    rng = np.random.default_rng(seed)
    first = _batch(name, rng)[0]
    start, step = (_linen if library == "linen" else _nnx)(name, ours)
    state, losses = start(seed, rate, first), []
    for number in range(STEPS):
        state, loss = step(state, *_batch(name, rng), jax.random.key(number))
        losses.append(float(loss))
    return float(np.mean(losses[-LAST:]))


def _batch(name: str, rng: np.random.Generator) -> tuple[Any, Any]:
    inputs, target = TASKS[name].sample(rng, TASKS[name].count)
    assert isinstance(inputs, tuple)
    return tuple(jnp.asarray(a, _dtype(a)) for a in (inputs[0], target))  # pyright: ignore


def _dtype(array: np.ndarray) -> Any:
    return jnp.float32 if np.issubdtype(array.dtype, np.floating) else jnp.int32


def _optimizer(ours: bool) -> Any:
    """AdamW, whose rate is a number in its state: one program for all rates."""
    inner = optax.inject_hyperparams(optax.adamw)(learning_rate=0.0)
    return jaxnorm.in_neuron_coordinates(inner) if ours else inner


def _with_rate(state: Any, rate: float) -> Any:
    """The state of an optimizer with this rate."""

    def set_rate(path: Any, leaf: Any) -> Any:
        return jnp.full_like(leaf, rate) if "learning_rate" in str(path) else leaf

    return jax.tree_util.tree_map_with_path(set_rate, state)


@cache
def _linen(name: str, ours: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """(seed, rate, batch -> state), (state, batch, target, key -> state, loss)."""
    make, _, kwargs = (LINEN | RESEARCH)[name]
    model, kwargs = make(), dict(kwargs)
    random = kwargs.pop("rngs", False)
    tx = _optimizer(ours)
    apply = jaxnorm.linen.neuronwise(model) if ours else model.apply

    def start(seed: int, rate: float, x: Any) -> Any:
        keys = {"params": jax.random.key(seed), "dropout": jax.random.key(seed)}
        variables = jax.jit(model.init)(keys, x)
        stats = {}
        if ours:
            more = {"rngs": {"dropout": keys["dropout"]}} if random else {}
            stats = jaxnorm.linen.init_statistics(apply, variables, x, **kwargs, **more)
        params = variables.pop("params")
        return params, variables, stats, _with_rate(tx.init(params), rate)

    @jax.jit
    def step(state: Any, x: Any, y: Any, key: Any) -> Any:
        params, variables, stats, optimizer = state

        def evaluate(params: Any, stats: Any) -> Any:
            every = {"params": params, **variables} | ({"neuron_stats": stats} if ours else {})
            out = apply(every, x, **kwargs, **({"rngs": {"dropout": key}} if random else {}))
            out, new = out if "mutable" in kwargs else (out, variables)
            return loss_of(TASKS[name].loss, out, y), new

        by = jax.value_and_grad(evaluate, (0, 1), has_aux=True)
        (loss, new), (grads, recorded) = by(params, stats)
        more = {}
        if ours:
            stats = jaxnorm.update_statistics(stats, recorded)
            more = {"neuron_stats": stats}
        updates, optimizer = tx.update(grads, optimizer, params, **more)
        return (optax.apply_updates(params, updates), new, stats, optimizer), loss

    return start, step


@cache
def _nnx(name: str, ours: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The same, for an nnx model."""
    tx = _optimizer(ours)
    wrt = jaxnorm.nnx.PARAMS_AND_STATISTICS if ours else nnx.Param

    def start(seed: int, rate: float, x: Any) -> Any:
        model = NNX[name](nnx.Rngs(seed))
        if ours:
            jaxnorm.nnx.convert(model, example_input=x)
            jaxnorm.nnx.init_statistics(model, x)
        optimizer = (jaxnorm.nnx.Optimizer if ours else nnx.Optimizer)(model, tx, wrt=nnx.Param)
        nnx.update(optimizer, _with_rate(nnx.state(optimizer), rate))
        return model, optimizer

    @nnx.jit
    def update(model: Any, optimizer: Any, x: Any, y: Any) -> Any:
        by = nnx.value_and_grad(
            lambda model: loss_of(TASKS[name].loss, model(x), y), argnums=nnx.DiffState(0, wrt)
        )
        loss, grads = by(model)
        optimizer.update(model, grads)
        return loss

    def step(state: Any, x: Any, y: Any, _: Any) -> Any:
        return state, update(*state, x, y)

    return start, step


def loss_of(name: str, out: Any, target: Any) -> Any:
    """One of `tasks.LOSSES`; channels are the last axis."""
    if name == "itself":
        return jnp.mean(out)
    if name == "squares":
        return jnp.mean((out - target) ** 2)
    if name == "next token":
        out, target = out[:, :-1], target[:, 1:]
    if name == "classes":
        out = out.reshape(len(out), -1, out.shape[-1]).mean(1)
    entropy = optax.softmax_cross_entropy_with_integer_labels(out, target)
    return jnp.mean(entropy)
