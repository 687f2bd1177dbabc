"""A situation in JAX: layers of linen, Optax, and the step that its users write."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import lax

import jaxnorm
from parity_tests.situations.case import RULES, Block, Case, Structure
from parity_tests.situations.plain import NORMALIZER_EPSILON
from parity_tests.situations.steppers import MOMENTUM
from parity_tests.situations.values import OUTPUTS, WINDOW, Params, Values

ACTIVATIONS = {
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
    "sigmoid": jax.nn.sigmoid,
}


class Net(nn.Module):
    """The network of a structure."""

    structure: Structure
    rule: Any

    @nn.compact
    def __call__(self, x: Any, masks: list[Any], reached: tuple[int, ...]) -> Any:
        """[rows, heads reached, O]."""
        network, dtype = self.structure.network, np.dtype(self.structure.dtype)
        rank, masks = len(network.space), list(masks)
        common: Any = {"rule": self.rule, "dtype": dtype, "param_dtype": dtype}
        for n, block in enumerate(network.blocks):
            gate = jaxnorm.DEFERRED if _deferred(block) else block.gate
            settings = common | {"gate": gate, "use_bias": block.bias, "name": f"block_{n}"}
            if rank:
                place = {"strides": block.stride, "padding": block.padding}
                layer = jaxnorm.linen.Conv(block.width, (WINDOW,) * rank, **place, **settings)
            else:
                layer = jaxnorm.linen.Dense(block.width, **settings)
            for _ in range(block.calls):
                x = self.block(layer, block, x, masks)
        x = x.reshape(*x.shape[: x.ndim - 1 - rank], -1)
        heads = {
            n: jaxnorm.linen.Dense(OUTPUTS, gate=None, name=f"head_{n}", **common)
            for n in range(network.heads)
        }
        out = jnp.stack([heads[n](x) for n in reached], axis=-2)
        if network.idle == "empty":
            out = out + sum(heads[n](x[:0]).sum() for n in heads if n not in reached)
        return out

    def block(self, layer: Any, block: Block, x: Any, masks: list[Any]) -> Any:
        """See `Block`."""
        u, handle = layer(x) if _deferred(block) else (layer(x), None)
        if block.normalizer in ("layer", "batch"):
            u = _normalized(u, over_rows=block.normalizer == "batch")
        if block.residual == "before":
            u = u + x
        if handle is not None:
            u = jaxnorm.tell_gate(u, handle, block.gate)
        a = ACTIVATIONS[block.gate](u)
        if block.normalizer == "after":
            a = _normalized(a, over_rows=False)
        if block.dropout:
            a = a * masks.pop(0)
        return a + x if block.residual == "after" else a


def _deferred(block: Block) -> bool:
    return block.normalizer in ("layer", "batch") or block.residual == "before"


def _normalized(a: Any, *, over_rows: bool) -> Any:
    axes = tuple(range(a.ndim - 1)) if over_rows else (-1,)
    deviation = a - jnp.mean(a, axes, keepdims=True)
    variance = jnp.mean(deviation**2, axes, keepdims=True)
    return deviation / jnp.sqrt(variance + NORMALIZER_EPSILON)


def run(case: Case, values: Values) -> tuple[list[Params], list[dict[str, int]]]:
    """The parameters after every step, and in how many steps each layer had made none."""
    structure = case.structure
    net = Net(structure, jaxnorm.Rule(decay=case.decay, epsilon=0.0, **RULES[structure.rule]))
    params = jax.tree.map(jnp.asarray, values.params)
    batch = values.batches[0]
    every = tuple(range(structure.network.heads))
    stats = jaxnorm.linen.init_statistics(net, {"params": params}, batch.x, batch.masks, every)
    numbers = {
        "rates": np.asarray(case.rates),
        "schedule": np.asarray(case.schedule),
        "weight_decays": np.asarray(case.weight_decays),
        "decay": np.asarray(case.decay),
        "scale": np.asarray(case.scale),
        "limit": np.asarray(case.limit),
    }
    numbers = {name: value.astype(structure.dtype) for name, value in numbers.items()}
    state = _optimizer(structure, numbers, params).init(params)
    found, skipped = [], []
    for step, batch in enumerate(values.batches):
        reached = structure.network.reached[step]
        now = replace(structure, wrapping=structure.wrapping.at(step))
        params, stats, state = _step(
            now, reached, params, stats, state, tuple(batch), values.learning, numbers
        )
        found.append(jax.tree.map(np.asarray, params))
        skipped.append(jaxnorm.skipped_steps(stats))
    return found, skipped


@functools.partial(jax.jit, static_argnums=(0, 1))
def _step(
    structure: Structure,
    reached: tuple[int, ...],
    params: Any,
    stats: Any,
    state: Any,
    batch: Any,
    learning: Any,
    numbers: dict[str, Any],
) -> Any:
    wrapping, frozen = structure.wrapping, structure.frozen
    net = Net(structure, jaxnorm.Rule(decay=numbers["decay"], epsilon=0.0, **RULES[structure.rule]))
    scale = numbers["scale"] if wrapping.scaled else 1.0

    def forward(params: Any, stats: Any, x: Any, masks: Any) -> Any:
        return net.apply({"params": params, "neuron_stats": stats}, x, masks, reached)

    if wrapping.remat:
        forward = jax.checkpoint(forward)

    def loss(params: Any, stats: Any, x: Any, y: Any, masks: Any) -> Any:
        if frozen is not None and frozen.by == "stopped":
            params = _where_frozen(structure, lax.stop_gradient, params)
        if wrapping.batches in ("vmap", "rows"):
            cut = _cut(structure, (x, masks))
            out = jax.vmap(lambda x, masks: forward(params, stats, x, masks))(*cut)
            out = out.reshape(len(x), *out.shape[-2:])
        else:
            out = forward(params, stats, x, masks)
        return scale * jnp.sum((out - y[:, list(reached)]) ** 2) / 2 / len(x)

    def gradient(x: Any, y: Any, masks: Any) -> Any:
        return jax.grad(loss, argnums=(0, 1))(params, stats, x, y, masks)

    grads, new, merged = _summed(structure, gradient, stats, batch)
    if wrapping.scaled:
        grads, new = jax.tree.map(lambda g: g / scale, (grads, new))
    if frozen is not None and frozen.by == "gradient":
        grads = jax.tree.map(lambda g, mask: g * mask, grads, learning)
    stats = jaxnorm.update_statistics(stats, new) if merged is None else merged
    tx = _optimizer(structure, numbers, params)
    updates, state = tx.update(grads, state, params, neuron_stats=stats)
    return optax.apply_updates(params, updates), stats, state


def _cut(structure: Structure, tree: Any) -> Any:
    """With the parts as the first axis; each of a single row has no axis for it."""
    parts = structure.wrapping.parts
    rows = () if structure.wrapping.batches == "rows" else (-1,)
    return jax.tree.map(lambda a: a.reshape(parts, *rows, *a.shape[1:]), tree)


def _summed(structure: Structure, gradient: Any, stats: Any, batch: Any) -> tuple[Any, Any, Any]:
    """(Gradients, statistics of the batch, or those merged), over all parts."""
    wrapping = structure.wrapping
    x, y, masks = jax.tree.map(jnp.asarray, batch)
    if wrapping.batches in ("whole", "vmap", "rows"):
        return *gradient(x, y, masks), None
    cut = _cut(structure, (x, y, masks))
    if wrapping.batches in ("axis", "update"):
        share = lax.pmean if wrapping.average else lax.psum

        def one(x: Any, y: Any, masks: Any) -> Any:
            grads, new = gradient(x, y, masks)
            if wrapping.batches == "axis":
                return share((grads, new), "parts")
            return share(grads, "parts"), jaxnorm.update_statistics(stats, new, axis_name="parts")

        grads, new = jax.vmap(one, axis_name="parts", out_axes=None)(*cut)
        return (grads, new, None) if wrapping.batches == "axis" else (grads, None, new)
    every = [jax.tree.map(lambda a, n=n: a[n], cut) for n in range(wrapping.parts)]
    if wrapping.batches == "scan":
        zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(gradient, *every[0]))
        total, _ = lax.scan(
            lambda carry, each: (jax.tree.map(jnp.add, carry, gradient(*each)), None), zeros, cut
        )
    else:
        total = gradient(*every[0])
        for each in every[1:]:
            total = jax.tree.map(jnp.add, total, gradient(*each))
    if wrapping.average:
        total = jax.tree.map(lambda g: g / wrapping.parts, total)
    return *total, None


def _where_frozen(structure: Structure, change: Any, params: Any) -> Any:
    """The parameters with those that are frozen whole changed."""
    frozen = structure.frozen
    assert frozen is not None
    return {
        layer: {
            name: change(value)
            if layer == frozen.layer and frozen.what in ("layer", name)
            else value
            for name, value in named.items()
        }
        for layer, named in params.items()
    }


def _optimizer(structure: Structure, numbers: dict[str, Any], params: Any) -> Any:
    frozen, clip = structure.frozen, structure.wrapping.clip
    case = Case(structure, 0)
    labels = {a: {b: case.group_of(a, b) for b in named} for a, named in params.items()}
    mask = None
    if structure.groups == "no decay":  # not a group of its own, but a mask
        mask = jax.tree.map(lambda group: group == 0, labels)
        labels = jax.tree.map(lambda _: 0, labels)
    groups = sorted(set(jax.tree.leaves(labels)))
    rules: Any = {group: _rule(structure, numbers, group, mask) for group in groups}
    none = jax.tree.map(lambda _: False, labels)
    outer = inner_frozen = none
    if frozen is not None and frozen.by == "inner":
        inner_frozen = _where_frozen(structure, lambda _: True, none)
    if frozen is not None and frozen.by == "outer":
        outer = _where_frozen(structure, lambda _: True, none)
    if any(jax.tree.leaves(inner_frozen)):
        labels = jax.tree.map(lambda n, still: -1 if still else n, labels, inner_frozen)
        rules[-1] = optax.set_to_zero()
    inner = optax.partition(rules, labels) if len(rules) > 1 else rules[min(rules)]
    if clip == "inside":
        inner = optax.chain(optax.clip_by_global_norm(numbers["limit"]), inner)
    if any(jax.tree.leaves(outer)):
        tx: Any = jaxnorm.in_neuron_coordinates(inner, frozen=outer)
        return optax.chain(tx, optax.masked(optax.set_to_zero(), outer))
    tx = jaxnorm.in_neuron_coordinates(inner)
    if clip == "norm":
        tx = optax.chain(optax.clip_by_global_norm(numbers["limit"]), tx)
    if clip == "value":
        tx = optax.chain(optax.clip(numbers["limit"]), tx)
    return tx


def _rule(structure: Structure, numbers: dict[str, Any], group: int, mask: Any) -> Any:
    """The optimizer of one group."""
    decay = numbers["weight_decays"][group]

    def rate(count: Any) -> Any:
        return numbers["rates"][group] * numbers["schedule"][count]

    kinds: dict[str, Any] = {
        "sgd": lambda: optax.chain(
            optax.add_decayed_weights(decay, mask), optax.scale_by_learning_rate(rate)
        ),
        "momentum": lambda: optax.sgd(rate, MOMENTUM),
        "nesterov": lambda: optax.sgd(rate, MOMENTUM, nesterov=True),
        "adam": lambda: optax.adam(rate),
        "adamw": lambda: optax.adamw(rate, weight_decay=decay, mask=mask),
    }
    return kinds[structure.optimizer]()
