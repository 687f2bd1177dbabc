"""Random cases: a structure from the seed and a number, then the numbers it is filled with.

The number goes through all wrappings, all that may be frozen and all optimizers in turn, in cycles
of different lengths, so that a few structures have each of them and many have all their pairs;
everything else is random.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from parity_tests.situations.case import Block, Case, Freezing, Frozen, Network, Structure, Wrapping

#: So many cases share a structure, which JAX compiles once.
SHARED = 16

_BATCHES = ("whole", "accumulate", "vmap", "scan", "rows", "axis", "update")
_OPTIMIZERS = ("adamw", "sgd", "momentum", "adam", "nesterov")
_FROZEN: tuple[tuple[str, Freezing] | None, ...] = (
    None,
    ("entries", "gradient"),
    ("bias", "gradient"),
    None,
    ("kernel", "stopped"),
    ("biases", "gradient"),
    ("bias", "inner"),
    None,
    ("kernel", "outer"),
    ("bias", "stopped"),
    ("layer", "inner"),
    ("bias", "outer"),
    ("kernel", "gradient"),
)
_SMOOTH = ("tanh", "silu", "softplus", "sigmoid")


def draw(seed: int, number: int) -> Case:
    """The case of a number."""
    group = number // SHARED
    structure = draw_structure(np.random.default_rng([seed, group]), group)
    return fill(np.random.default_rng([seed, group, number]), structure)


def _chance(rng: np.random.Generator, share: float) -> bool:
    return bool(rng.random() < share)


def _one_of(rng: np.random.Generator, options: Any) -> Any:
    return options[int(rng.integers(len(options)))]


def draw_structure(rng: np.random.Generator, number: int) -> Structure:
    """What a step is compiled for."""
    dtype = "float32" if _chance(rng, 0.15) else "float64"
    wrapping = _wrapping(rng, _BATCHES[number % len(_BATCHES)])
    rank = _one_of(rng, (0, 0, 1, 2))
    optimizer = _OPTIMIZERS[number % len(_OPTIMIZERS)]
    gates = _SMOOTH if dtype == "float32" else ("relu", "relu", *_SMOOTH)
    network = _network(rng, rank, gates, wrapping)
    groups = _one_of(rng, ("none", "none", "biases", "last"))
    if optimizer in ("sgd", "adamw") and _chance(rng, 0.3):
        groups = "no decay"
    parts = wrapping.parts
    rows = parts if wrapping.batches == "rows" else _one_of(rng, (12, 24, 48))
    structure = Structure(network, wrapping, optimizer, groups, None, rows, dtype)
    if wrapping.batches == "whole" and not any(b.normalizer == "batch" for b in network.blocks):
        alone = _one_of(rng, ((), (0,), (1,), (0, 2)))
        structure = replace(structure, alone=tuple(n for n in alone if n < structure.steps))
    rules: list[Any] = (
        ["default"] * 3 + ["standardized"] * 2 + ["uniform", "layer"] + ["error"] * (parts == 1)
    )
    structure = replace(structure, rule=_one_of(rng, rules))
    return replace(structure, frozen=_frozen(rng, structure, _FROZEN[number % len(_FROZEN)]))


def _wrapping(rng: np.random.Generator, batches: Any) -> Wrapping:
    parts = {"whole": 1, "rows": 12}.get(batches) or int(_one_of(rng, (2, 3, 4)))
    return Wrapping(
        batches=batches,
        parts=parts,
        average=batches in ("accumulate", "scan", "axis", "update") and _chance(rng, 0.5),
        remat=_chance(rng, 0.2),
        scaled=batches != "update" and _chance(rng, 0.25),
        clip=_one_of(rng, ("none", "none", "none", "none", "norm", "value", "inside")),
        closure=_chance(rng, 0.2),
        warm=batches != "whole" and _chance(rng, 0.6),
    )


def _network(rng: np.random.Generator, rank: int, gates: Any, wrapping: Wrapping) -> Network:
    inputs, blocks, width = _one_of(rng, (3, 4)), [], None
    depth = int(rng.integers(1, 3 if rank else 4))
    width = inputs
    for n in range(depth):
        after = _one_of(rng, (3, 4))
        same = n > 0 and width == after and _chance(rng, 0.7)
        block = Block(after, _one_of(rng, gates), bias=not _chance(rng, 0.2))
        if same and _chance(rng, 0.5):
            block = replace(block, calls=2)
        if rank and (same or (n > 0 and _chance(rng, 0.3))):
            block = replace(block, padding=1)
        elif rank and n == 0 and _chance(rng, 0.4):
            block = replace(block, stride=2)
        if same and _chance(rng, 0.5):
            block = replace(block, residual=_one_of(rng, ("before", "after")))
        if _chance(rng, 0.35):
            # Behind ReLU, a sum of gradients that a batch has made 0 would be 0 but for rounding.
            smooth = all(b.gate != "relu" for b in blocks)
            several = wrapping.batches != "rows" and smooth
            kinds = ("layer", "batch", "after") if several else ("layer", "after")
            block = replace(block, normalizer=_one_of(rng, kinds))
            if block.normalizer == "batch":
                block = replace(block, bias=False)  # which would be taken off again
        block = replace(block, dropout=_chance(rng, 0.25))
        blocks.append(block)
        width = after
    steps = int(rng.integers(1, 6))
    heads, reached = 1, ((0,),) * steps
    if _chance(rng, 0.25):
        heads = 2
        patterns = ([(0,)], [(0, 1), (0,)], [(0,), (0, 1)], [(0,), (1,)])
        pattern = _one_of(rng, patterns)
        reached = tuple(pattern[n % len(pattern)] for n in range(steps))
    space = {0: (), 1: (9,), 2: (7, 7)}[rank]
    idle = "empty" if wrapping.batches != "rows" and _chance(rng, 0.4) else "skipped"
    return Network(inputs, space, tuple(blocks), heads, reached, idle)


def _frozen(
    rng: np.random.Generator, structure: Structure, wanted: tuple[str, Freezing] | None
) -> Frozen | None:
    """Of a random layer."""
    if wanted is None:
        return None
    blocks, (what, by) = structure.network.blocks, wanted
    layers = structure.layers
    if what in ("bias", "biases"):
        layers = [a for a in layers if a.startswith("head") or blocks[int(a[-1])].bias]
    if structure.wrapping.clip != "none" and by in ("inner", "outer"):
        by = "stopped"  # whose gradient a clipping counts is a question of its own
    return Frozen(what, _one_of(rng, layers), by)  # type: ignore[arg-type]


def _is_near(structure: Structure) -> bool:
    """Whether a layer reads its first samples in parts: then they must not be far from 0."""
    network, wrapping = structure.network, structure.wrapping
    shared = any(block.calls > 1 for block in network.blocks)
    late = len(network.reached[0]) < network.heads
    return shared or (wrapping.parts > 1 and (late or not wrapping.warm))


def _sees_means(structure: Structure) -> bool:
    """Whether the first layer's inputs are not centered: the step's size has their means then."""
    frozen = structure.frozen
    fixed = frozen is not None and frozen.layer == "block_0" and frozen.what in ("bias", "biases")
    return fixed or not structure.network.blocks[0].bias


def fill(rng: np.random.Generator, structure: Structure) -> Case:
    """A case of a structure."""
    first, single = structure.network.blocks[0], structure.dtype == "float32"
    ratio, std = 1.0, 1.0
    near = _is_near(structure)
    if _chance(rng, 0.5):
        ratio = float(10.0 ** _one_of(rng, (1, 2, 3) if single else (1, 2, 3, 4, 5, 6)))
    elif _chance(rng, 0.3):
        ratio = 0.0
    if _chance(rng, 0.4):
        std = float(10.0 ** rng.integers(-6, 7))
        if structure.rule != "standardized":
            std = float(np.clip(std, 0.01, 1.0))  # at the same rates, which know its unit
    start = _one_of(rng, ("fitted", "fitted", "small", "zero"))
    if not first.bias and start == "fitted" and ratio > 1:
        start = "small"
    if start == "zero" and any(b.normalizer != "none" for b in structure.network.blocks):
        start = "small"  # the digits of what is constant, divided by their own spread
    if near:
        ratio, start = min(ratio, 2.0), "fitted"
    if structure.rule != "standardized" and _sees_means(structure):
        std = min(std, 1.0 / max(ratio, 1.0))
    rates = [float(np.round(10 ** rng.uniform(-3 if single else -3.5, -1.5), 4)) for _ in range(2)]
    decays = (0.0, 0.0)
    if structure.optimizer in ("sgd", "adamw") and _chance(rng, 0.6):
        decays = (_one_of(rng, (0.1, 1.0)), _one_of(rng, (0.0, 0.3)))
    if structure.groups == "no decay":
        rates, decays = [rates[0]] * 2, (decays[0], 0.0)
    memoryless = 0 in structure.alone or structure.rule == "error"
    schedule = (1.0,) * 5 if _chance(rng, 0.7) else (0.1, 0.5, 1.0, 0.7, 0.3)
    return Case(
        structure,
        seed=int(rng.integers(2**31)),
        ratio=ratio,
        std=std,
        constant=int(_chance(rng, 0.2)) * _one_of(rng, (1, 2)),
        start=start,
        rates=(rates[0], rates[1]),
        schedule=schedule,
        weight_decays=decays,
        decay=0.0 if memoryless else _one_of(rng, (0.0, 0.0, 0.9, 0.99)),
        scale=_one_of(rng, (65536.0, 1024.0, 3.7, 2.0**-10)) if structure.wrapping.scaled else 1.0,
        limit=_one_of(rng, (0.1, 1.0, 10.0)) if structure.wrapping.clip != "none" else 1.0,
    )
