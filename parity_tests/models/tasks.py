"""What the networks are trained on: made up, always the same, and learnable. NumPy only.

Every batch is fresh, so the loss in training is that on what was never seen. Inputs have means and
scales of their own, as data have.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Random = np.random.Generator
#: Keyword arguments of the network, or positional ones; and what is to be learned of them.
Batch = tuple[dict[str, np.ndarray] | tuple[np.ndarray, ...], np.ndarray]
More = Callable[[Random, int], dict[str, np.ndarray]]

#: Names of the losses, and how each reads the output.
LOSSES = {
    "classes": "cross-entropy of the first few channels, averaged over places",
    "each class": "cross-entropy at every place",
    "next token": "cross-entropy of the token after each one",
    "squares": "mean of squared errors",
    "itself": "the mean of the output, which is a loss already",
}


@dataclass(frozen=True)
class Task:
    """Something to learn.

    Attributes:
        text: what it is, in words.
        sample: (random generator, how many) -> a batch.
        loss: one of `LOSSES`.
        count: samples in a batch.
    """

    text: str
    sample: Callable[[Random, int], Batch]
    loss: str
    count: int = 32


def _named(name: str | None, x: np.ndarray, more: dict[str, np.ndarray]) -> Any:
    return (x, *more.values()) if name is None else {name: x, **more}


def _smooth(shape: tuple[int, ...], number: int) -> np.ndarray:
    """So many random patterns in which neighbors along the last axes are alike."""
    x = np.random.default_rng(0).normal(size=(number, *shape))
    for axis in range(2 if len(shape) > 1 else 1, len(shape) + 1):
        x = np.sum([np.roll(x, k, axis) for k in range(4)], axis=0) / 2
    return x


def patterns(shape: tuple[int, ...], name: str | None = None, more: More | None = None) -> Task:
    """Which of three patterns it is, of random strength, moved along the last axis, in noise."""
    known = _smooth(shape, 3)

    def sample(rng: Random, count: int) -> Batch:
        y = rng.integers(0, 3, count)
        moved = [np.roll(known[k], rng.integers(0, 3), -1) for k in y]
        strength = rng.uniform(0.5, 1.5, (count, *(1,) * len(shape)))
        x = 0.5 + strength * np.stack(moved) + rng.normal(size=(count, *shape))
        return _named(name, x, more(rng, count) if more else {}), y

    return Task("three patterns, moved, in noise: which", sample, "classes")


def clean(
    shape: tuple[int, ...], name: str | None = None, more: More | None = None, count: int = 16
) -> Task:
    """An image of a few known patterns [C, ...] without its noise."""
    known = _smooth(shape, 3)

    def sample(rng: Random, count: int) -> Batch:
        y = np.einsum("nk,k...->n...", rng.normal(size=(count, 3)), known)
        x = y + rng.normal(size=y.shape)
        return _named(name, x, more(rng, count) if more else {}), y

    return Task("sums of three patterns in noise: the sum", sample, "squares", count)


def parts(shape: tuple[int, ...], name: str | None = None, count: int = 16) -> Task:
    """Where a pattern [C, ...] is positive, from its noisy image: two classes at every place."""
    known = _smooth(shape, 3)

    def sample(rng: Random, count: int) -> Batch:
        y = np.einsum("nk,k...->n...", rng.normal(size=(count, 3)), known)
        x = 2 * y + rng.normal(size=y.shape)
        return _named(name, x, {}), (y[:, 0] > 0).astype(np.int64)

    return Task("sums of three patterns in noise: the sum's sign, everywhere", sample, "each class")


def _chain(rng: Random, count: int, length: int) -> np.ndarray:
    """Tokens from 3 to 32, each followed by one of two known ones in nine of ten cases."""
    followers = np.random.default_rng(0).integers(0, 30, (30, 2))
    tokens = np.zeros((count, length), np.int64)
    tokens[:, 0] = rng.integers(0, 30, count)
    for k in range(1, length):
        likely = followers[tokens[:, k - 1], rng.integers(0, 2, count)]
        tokens[:, k] = np.where(rng.random(count) < 0.9, likely, rng.integers(0, 30, count))
    return tokens + 3


def chain(name: str | None = "input_ids", length: int = 12) -> Task:
    """The next token of a Markov chain."""

    def sample(rng: Random, count: int) -> Batch:
        tokens = _chain(rng, count, length)
        return _named(name, tokens, {}), tokens

    return Task("a Markov chain of tokens: the next one", sample, "next token")


def gaps(name: str = "input_ids", length: int = 12) -> Task:
    """The tokens of a Markov chain, a quarter of them masked."""

    def sample(rng: Random, count: int) -> Batch:
        tokens = _chain(rng, count, length)
        return {name: np.where(rng.random(tokens.shape) < 0.25, 2 + 60, tokens)}, tokens

    return Task("a Markov chain of tokens with gaps: every token", sample, "each class")


def translation(encoder: str | None = "input_ids", more: More | None = None) -> Task:
    """The next token of a decoder whose encoder sees the same chain, or something else."""

    def sample(rng: Random, count: int) -> Batch:
        tokens = _chain(rng, count, 8)
        inputs = {} if encoder is None else {encoder: tokens}
        inputs |= more(rng, count) if more else {}
        return {**inputs, "decoder_input_ids": tokens}, tokens

    return Task("a Markov chain of tokens: the next one, by the decoder", sample, "next token")


def first_token() -> Task:
    """Which third of the alphabet a chain began with."""

    def sample(rng: Random, count: int) -> Batch:
        tokens = _chain(rng, count, 7)
        return {"input_ids": tokens}, (tokens[:, 0] - 3) // 10 % 2

    return Task("a Markov chain of tokens: the kind of the first", sample, "classes")


def table(features: int = 5, categories: tuple[int, ...] = (), name: str | None = None) -> Task:
    """A smooth function of columns in units of their own."""
    rng = np.random.default_rng(0)
    mean, unit = 2 * rng.normal(size=features), np.exp(rng.normal(size=features))
    weight = rng.normal(size=(features, 3))

    def sample(rng: Random, count: int) -> Batch:
        x = rng.normal(size=(count, features))
        y = np.sin(x @ weight).sum(1, keepdims=True)
        kinds = np.stack([rng.integers(0, k, count) for k in categories], 1) if categories else None
        if kinds is not None:
            y = y + kinds.sum(1, keepdims=True)
        return _named(name, x * unit + mean, {} if kinds is None else {"kinds": kinds}), y

    return Task("a table of columns in units of their own: sines of sums", sample, "squares", 64)


def communities(features: int = 5, name: str = "x", more: More | None = None) -> Task:
    """Which of three communities a node is in, from noisy features and its neighbors."""
    center = np.random.default_rng(0).normal(size=(3, features))

    def sample(rng: Random, count: int) -> Batch:
        y = rng.integers(0, 3, count)
        x = 0.5 + center[y] + 2 * rng.normal(size=(count, features))
        near = rng.random((count, count)) < np.where(y[:, None] == y, 0.15, 0.02)
        edges = np.stack(np.nonzero(near | np.eye(count, dtype=bool)))
        inputs = {name: x, "edge_index": edges}
        return inputs | (more(rng, edges.shape[1]) if more else {}), y

    return Task("three communities of nodes: which", sample, "classes", 64)


def molecules(atoms: int = 6) -> Task:
    """A sum over the pairs of atoms of a molecule, by their kinds and distances."""
    charge = np.random.default_rng(0).normal(size=9)

    def sample(rng: Random, count: int) -> Batch:
        z = rng.integers(1, 9, (count, atoms))
        pos = 2 * rng.normal(size=(count, atoms, 3))
        apart = ((pos[:, :, None] - pos[:, None]) ** 2).sum(-1)
        energy = (charge[z][:, :, None] * charge[z][:, None] / (1 + apart)).sum((1, 2)) / 2
        molecule = np.repeat(np.arange(count), atoms)
        return {"z": z.ravel(), "pos": pos.reshape(-1, 3), "batch": molecule}, energy[:, None]

    return Task("molecules: a sum over pairs of atoms", sample, "squares", 32)


def waves(name: str = "past_values", length: int = 16, ahead: int = 4) -> Task:
    """Two waves, a while later."""

    def sample(rng: Random, count: int) -> Batch:
        time, phase = np.arange(length + ahead)[:, None], 2 * np.pi * rng.random((count, 1, 2))
        x = np.sin(time * [0.5, 0.8] + phase) + 0.1 * rng.normal(size=(count, length + ahead, 2))
        return {name: x[:, :length]}, x[:, length:]

    return Task("two waves with noise: the next values", sample, "squares")


def moons() -> Task:
    """The density of two half circles."""

    def sample(rng: Random, count: int) -> Batch:
        angle, which = np.pi * rng.random(count), rng.integers(0, 2, count)
        x = np.stack([np.cos(angle), np.sin(angle)], 1) * (1 - 2 * which[:, None])
        x = x + which[:, None] * [1.0, 0.5] + 0.1 * rng.normal(size=(count, 2))
        return (x,), np.zeros(count)

    return Task("two half circles: their density", sample, "itself", 128)
