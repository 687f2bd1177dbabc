"""The arrays of a case: parameters, data, masks; from its seed, in its dtype."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from parity_tests.situations.case import Block, Case, Structure

#: The extent of every convolution's window, and the width of a head.
WINDOW, OUTPUTS = 3, 2
#: {layer: {"kernel": [*window, C, O], "bias": [O]}}.
Params = dict[str, dict[str, np.ndarray]]


class Batch(NamedTuple):
    """What one step reads.

    Attributes:
        x: [rows, *space, C].
        y: [rows, heads, O].
        masks: of each dropout in the order of the forward pass, [rows, ...].
    """

    x: np.ndarray
    y: np.ndarray
    masks: list[np.ndarray]

    def parts(self, count: int) -> list[Batch]:
        """Cut along the rows."""
        cut = [np.split(a, count) for a in (self.x, self.y, *self.masks)]
        return [Batch(x, y, masks) for x, y, *masks in zip(*cut, strict=True)]


class Values(NamedTuple):
    """The arrays of a case.

    Attributes:
        params: before the first step.
        batches: one a step.
        learning: like params; 0 where an entry does not learn.
    """

    params: Params
    batches: list[Batch]
    learning: Params


def make(case: Case) -> Values:
    """Those of a case."""
    rng, dtype = np.random.default_rng(case.seed), np.dtype(case.structure.dtype)
    inputs = case.structure.network.inputs
    std = case.std * np.exp(0.5 * rng.standard_normal(inputs))
    mean = case.ratio * std * rng.choice([-1.0, 1.0], inputs) * rng.uniform(0.5, 1.0, inputs)
    batches = [_batch(case, rng, mean, std, step) for step in range(case.structure.steps)]
    params = _params(case, rng, mean, std)
    learning = _learning(case, rng, params)
    return _cast(Values(params, batches, learning), dtype)


def _batch(case: Case, rng: np.random.Generator, mean: Any, std: Any, step: int) -> Batch:
    network, structure = case.structure.network, case.structure
    rows = 1 if step in structure.alone else structure.rows
    shape = (rows, *network.space, network.inputs)
    x = mean + std * (rng.standard_normal(shape) + 0.3 * rng.standard_normal(network.inputs))
    if case.constant:
        x[..., -case.constant :] = mean[-case.constant :]
    y = rng.standard_normal((rows, network.heads, OUTPUTS))
    masks = [
        rng.choice([0.0, 1.25], (rows, *space, block.width), p=[0.2, 0.8])
        for block, space in zip(_called(case.structure), extents(case.structure)[1:], strict=True)
        if block.dropout
    ]
    return Batch(x, y, masks)


def _called(structure: Structure) -> list[Block]:
    """The blocks, as often as they are called."""
    return [block for block in structure.network.blocks for _ in range(block.calls)]


def extents(structure: Structure) -> list[tuple[int, ...]]:
    """The space in front of each call of a block, and behind the last."""
    found = [structure.network.space]
    for block in _called(structure):
        space = ((n + 2 * block.padding - WINDOW) // block.stride + 1 for n in found[-1])
        found.append(tuple(space))
    return found


def _params(case: Case, rng: np.random.Generator, mean: Any, std: Any) -> Params:
    network, params = case.structure.network, {}
    window, width = (WINDOW,) * len(network.space), network.inputs
    for n, block in enumerate(network.blocks):
        params[f"block_{n}"] = _layer(rng, (*window, width, block.width), bias=block.bias)
        width = block.width
    width *= math.prod(extents(case.structure)[-1])
    for n in range(network.heads):
        params[f"head_{n}"] = _layer(rng, (width, OUTPUTS), bias=True)
    first = params["block_0"]
    if case.start == "zero":
        first["kernel"] *= 0
    elif case.start == "small":
        first["kernel"] /= (np.abs(mean) + std)[:, None]
    else:
        first["kernel"] /= std[:, None]
        if "bias" in first:
            first["bias"] -= (mean @ first["kernel"]).reshape(-1, len(first["bias"])).sum(0)
    return params


def _layer(rng: np.random.Generator, shape: tuple[int, ...], *, bias: bool) -> Any:
    kernel = rng.standard_normal(shape) / np.sqrt(math.prod(shape[:-1]))
    return {"kernel": kernel} | ({"bias": 0.5 * rng.standard_normal(shape[-1])} if bias else {})


def _learning(case: Case, rng: np.random.Generator, params: Params) -> Params:
    learning = {a: {b: np.ones_like(c) for b, c in d.items()} for a, d in params.items()}
    frozen = case.structure.frozen
    if frozen is None:
        return learning
    layer = learning[frozen.layer]
    if frozen.what == "layer":
        return learning | {frozen.layer: {name: 0 * value for name, value in layer.items()}}
    name = {"entries": "kernel", "biases": "bias"}.get(frozen.what, frozen.what)
    if frozen.what == name:
        layer[name] *= 0
    else:
        zero = rng.random(layer[name].shape) < 0.4
        zero.flat[rng.integers(zero.size)] = True
        layer[name][zero] = 0
    return learning


def _cast(values: Any, dtype: np.dtype) -> Any:
    """As an implementation gets them."""
    if isinstance(values, np.ndarray):
        return values.astype(dtype)
    if isinstance(values, dict):
        return {name: _cast(value, dtype) for name, value in values.items()}
    parts = [_cast(value, dtype) for value in values]
    return type(values)(*parts) if hasattr(values, "_fields") else parts
