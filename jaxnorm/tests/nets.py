"""One small network behind the Optax side: linen, nnx and converted, and what is right for it.

The reference changes the coordinates explicitly: moments in NumPy by the oracle, the gradient by
autodiff through ``w = w~ / sigma, b = b~ - mean.w``, the inner optimizer's own step, and back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import jaxnorm
from jaxnorm import Rule
from parity_tests import oracle
from parity_tests.oracle import Knobs
from parity_tests.tolerances import slice_error

#: Whose coordinates are those of the last batch alone.
OF_THE_BATCH = Rule(smoothing=0.0)
WIDTHS = (5, 8, 3)
GATES = ("silu", None)


class Network(NamedTuple):
    """A network as pure functions.

    Attributes:
        params: of linen, or an `nnx.State`.
        stats: its statistics before the first step.
        apply: (params, stats, x) -> output.
        layers: a tree like params -> [(kernel, bias)], in order.
    """

    params: Any
    stats: Any
    apply: Callable[[Any, Any, Any], Any]
    layers: Callable[[Any], list[tuple[Any, Any]]]

    def loss(self, params: Any, stats: Any, x: Any, y: Any) -> Any:
        """Half the sum of squared errors: additive over samples, as micro-batches need it."""
        return jnp.sum((self.apply(params, stats, x) - y) ** 2) / 2

    def grads(self, params: Any, stats: Any, x: Any, y: Any) -> tuple[Any, Any]:
        """The gradients at the parameters and at the statistics."""
        return jax.grad(self.loss, (0, 1))(params, stats, x, y)

    def step(self, tx: Any, state: Any, params: Any, stats: Any, x: Any, y: Any) -> Any:
        """(state, params, stats) after one step."""
        grads, batch = self.grads(params, stats, x, y)
        stats = jaxnorm.update_statistics(stats, batch)
        updates, state = tx.update(grads, state, params, neuron_stats=stats)
        return state, optax.apply_updates(params, updates), stats


class Linen(linen.Module):
    """Two layers of `package`."""

    package: Any
    kwargs: dict[str, Any]
    ours: bool = True

    @linen.compact
    def __call__(self, x: Any) -> Any:
        """Layer, SiLU, layer."""
        first, last = ({"gate": gate} if self.ours else {} for gate in GATES)
        x = linen.silu(self.package.Dense(WIDTHS[1], **first, **self.kwargs)(x))
        return self.package.Dense(WIDTHS[2], **last, **self.kwargs)(x)


class Nnx(nnx.Module):
    """As `Linen`."""

    def __init__(self, package: Any, kwargs: dict[str, Any], *, ours: bool = True) -> None:
        gates = ({"gate": gate} if ours else {} for gate in GATES)
        self.layers = nnx.List(
            package.Linear(i, o, rngs=nnx.Rngs(0), **gate, **kwargs)
            for i, o, gate in zip(WIDTHS[:-1], WIDTHS[1:], gates, strict=True)
        )

    def __call__(self, x: Any) -> Any:
        """Layer, SiLU, layer."""
        return self.layers[1](jax.nn.silu(self.layers[0](x)))


def data(samples: int = 24, dtype: Any = np.float64) -> tuple[Any, Any]:
    """Inputs of unlike scales and means, and targets."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((samples, WIDTHS[0])) + 1) * np.exp(rng.standard_normal(WIDTHS[0]))
    y = np.sin(x @ rng.standard_normal((WIDTHS[0], WIDTHS[-1])))
    return jnp.asarray(x, dtype), jnp.asarray(y, dtype)


def initial(dtype: Any = np.float64) -> list[tuple[Any, Any]]:
    """Kernels and biases for all kinds."""
    rng = np.random.default_rng(1)
    return [
        (
            jnp.asarray(rng.standard_normal((i, o)) / np.sqrt(i), dtype),
            jnp.asarray(0.1 * rng.standard_normal(o), dtype),
        )
        for i, o in pairwise(WIDTHS)
    ]


def make(kind: str, rule: Rule = Rule(), dtype: Any = np.float64) -> Network:
    """A network of this kind, with the `initial` parameters."""
    kwargs = {"param_dtype": dtype, "dtype": dtype}
    return (_linen if "linen" in kind else _nnx)("converted" in kind, rule, kwargs)


def _linen(converted: bool, rule: Rule, kwargs: dict[str, Any]) -> Network:
    x = jnp.zeros((2, WIDTHS[0]), kwargs["dtype"])
    if converted:
        model = Linen(linen, kwargs, ours=False)
        apply = jaxnorm.linen.neuronwise(model, rule=rule)
    else:
        model = Linen(jaxnorm.linen, {**kwargs, "rule": rule})
        apply = model.apply
    params = {
        f"Dense_{n}": {"kernel": kernel, "bias": bias}
        for n, (kernel, bias) in enumerate(initial(kwargs["dtype"]))
    }
    stats = jaxnorm.linen.init_statistics(apply, {"params": params}, x)

    def run(params: Any, stats: Any, x: Any) -> Any:
        variables = {"params": params}
        return apply(variables if stats is None else {**variables, "neuron_stats": stats}, x)

    def layers(tree: Any) -> list[tuple[Any, Any]]:
        return [(tree[f"Dense_{n}"]["kernel"], tree[f"Dense_{n}"]["bias"]) for n in range(2)]

    return Network(params, stats, run, layers)


def nnx_model(kind: str = "nnx", rule: Rule = Rule(), dtype: Any = np.float64) -> Nnx:
    """The nnx network itself, with statistics."""
    kwargs = {"param_dtype": dtype, "dtype": dtype}
    x = jnp.zeros((2, WIDTHS[0]), dtype)
    if "converted" in kind:
        model = Nnx(nnx, kwargs, ours=False)
        jaxnorm.nnx.convert(model, example_input=x, rule=rule)
    else:
        model = Nnx(jaxnorm.nnx, {**kwargs, "rule": rule})
    for layer, (kernel, bias) in zip(model.layers, initial(dtype), strict=True):
        nnx.update(layer, {"kernel": kernel, "bias": bias})
    jaxnorm.nnx.init_statistics(model, x)
    return model


def _nnx(converted: bool, rule: Rule, kwargs: dict[str, Any]) -> Network:
    model = nnx_model("converted" if converted else "", rule, kwargs["dtype"])
    graph, params, stats = nnx.split(model, nnx.Param, jaxnorm.nnx.NeuronStats)

    def run(params: Any, stats: Any, x: Any) -> Any:
        return nnx.merge(graph, params, stats)(x)

    def layers(tree: Any) -> list[tuple[Any, Any]]:
        pure = nnx.to_pure_dict(tree)["layers"]
        return [(pure[n]["kernel"], pure[n]["bias"]) for n in range(2)]

    return Network(params, stats, run, layers)


KINDS = ("linen", "nnx", "linen converted", "nnx converted")


def moments(layers: Any, x: Any, knobs: Knobs = Knobs()) -> list[oracle.Moments]:
    """The oracle's, of every layer; for weightings that do not need the gradient."""
    found, a = [], np.asarray(x)
    for (kernel, bias), gate in zip(layers, GATES, strict=True):
        z = a @ np.asarray(kernel) + np.asarray(bias)
        s = oracle.sample_weight(z, z, gate, knobs.weighting)
        at = oracle.moments(a, s, knobs)
        found.append(at._replace(sigma=at.sigma / oracle.unit(at, knobs)))
        a = oracle.GATES[gate or "identity"][0](z)
    return found


def reference(
    inner: Any, x: Any, y: Any, extra: bool = False, knobs: Knobs = Knobs()
) -> Iterator[list[tuple[Any, Any]]]:
    """The layers after each step of the inner optimizer in explicit coordinates."""

    def forward(layers: Any) -> Any:
        (kernel, bias), (last, last_bias) = layers
        a = jax.nn.silu(x @ kernel + bias[None])
        return jnp.sum((a @ last + last_bias[None] - y) ** 2) / 2

    def there(layers: Any, found: Any) -> Any:
        moved = [b + jnp.sum(at.mean * w, 0) for (w, b), at in zip(layers, found, strict=True)]
        kernels = [at.sigma * w for (w, _), at in zip(layers, found, strict=True)]
        return named(list(zip(kernels, moved, strict=True)))

    def back(coordinates: Any, found: Any) -> Any:
        layers = []
        for (kernel, bias), at in zip(unnamed(coordinates), found, strict=True):
            w = kernel / at.sigma
            layers.append((w, bias - jnp.sum(at.mean * w, 0)))
        return layers

    @jax.jit
    def step(state: Any, layers: Any, found: Any) -> Any:
        at = there(layers, found)
        value, grads = jax.value_and_grad(lambda at: forward(back(at, found)))(at)
        more = {"value": value} if extra else {}
        moved, state = optax.with_extra_args_support(inner).update(grads, state, at, **more)
        return state, back(optax.apply_updates(at, moved), found)

    layers = initial()
    state = inner.init(named(layers))
    while True:
        state, layers = step(state, layers, moments(layers, x, knobs))
        yield layers


def named(layers: Any) -> dict[str, Any]:
    """[(kernel, bias)] as the tree of linen."""
    return {f"Dense_{n}": {"kernel": w, "bias": b} for n, (w, b) in enumerate(layers)}


def unnamed(tree: Any) -> list[tuple[Any, Any]]:
    """The opposite."""
    return [(layer["kernel"], layer["bias"]) for layer in tree.values()]


def error(actual: Any, expected: Any) -> float:
    """The worst over the arrays of two trees, each as one slice."""
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    return max(slice_error(a, e, axes=()) for a, e in pairs)


def some(every: Any, *fast: Any) -> list[Any]:
    """Parameters for pytest, all but the fast ones slow."""
    marks = [() if each in fast else pytest.mark.slow for each in every]
    pairs = zip(every, marks, strict=True)
    return [pytest.param(*(e if isinstance(e, tuple) else (e,)), marks=m) for e, m in pairs]
