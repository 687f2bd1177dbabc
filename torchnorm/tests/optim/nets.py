"""One small network behind the torch.optim side, and what is right for it.

The reference changes the coordinates explicitly: moments in NumPy by the oracle, the gradient by
autograd through ``w = w~ / sigma, b = b~ - mean.w``, the inner optimizer's own step, and back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import torchnorm
from parity_tests import oracle
from parity_tests.oracle import Knobs
from parity_tests.tolerances import slice_error
from torchnorm import Rule
from torchnorm.optim import in_neuron_coordinates

WIDTHS = (5, 8, 3)
GATES = ("silu", None)
#: A few steps of an optimizer that divides by roots of squares: errors of 1e-16 grow.
STEPS = 4
#: Statistics of each batch alone, as the reference has them.
EXACT = Rule(statistics_every=1)
Pairs = list[tuple[torch.Tensor, torch.Tensor]]


def data(samples: int = 24, dtype: torch.dtype = torch.float64) -> tuple[Any, Any]:
    """Inputs of unlike scales and means, and targets."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((samples, WIDTHS[0])) + 1) * np.exp(rng.standard_normal(WIDTHS[0]))
    y = np.sin(x @ rng.standard_normal((WIDTHS[0], WIDTHS[-1])))
    return torch.tensor(x, dtype=dtype), torch.tensor(y, dtype=dtype)


def initial(dtype: torch.dtype = torch.float64) -> Pairs:
    """(weight, bias) of each layer."""
    rng = np.random.default_rng(1)
    return [
        (
            torch.tensor(rng.standard_normal((o, i)) / np.sqrt(i), dtype=dtype),
            torch.tensor(0.1 * rng.standard_normal(o), dtype=dtype),
        )
        for i, o in pairwise(WIDTHS)
    ]


def network(
    rule: Rule = EXACT, dtype: torch.dtype = torch.float64, kind: Any = torchnorm.Linear
) -> nn.Sequential:
    """Layer, SiLU, layer, with the `initial` parameters; PyTorch's with ``kind=nn.Linear``."""
    own = kind is not nn.Linear
    first, last = (
        kind(i, o, dtype=dtype, **({"gate": gate, "rule": rule} if own else {}))
        for (i, o), gate in zip(pairwise(WIDTHS), GATES, strict=True)
    )
    with torch.no_grad():
        for layer, (weight, bias) in zip((first, last), initial(dtype), strict=True):
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
    return nn.Sequential(first, nn.SiLU(), last)


def adam(model: nn.Module, lr: float = 0.03, **kwargs: Any) -> torch.optim.Optimizer:
    """Adam in neuron coordinates."""
    return in_neuron_coordinates(torch.optim.Adam(model.parameters(), lr, **kwargs), model)


def sgd(model: nn.Module, lr: float = 0.01, **kwargs: Any) -> torch.optim.Optimizer:
    """SGD in neuron coordinates."""
    return in_neuron_coordinates(torch.optim.SGD(model.parameters(), lr, **kwargs), model)


def loss(model: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Half the sum of squared errors: additive over samples, as micro-batches need it."""
    return ((model(x) - y) ** 2).sum() / 2


def train(model: nn.Module, optimizer: Any, steps: int = STEPS, given: Any = None) -> list[Any]:
    """The parameters after some steps."""
    x, y = data() if given is None else given
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model, x, y).backward()
        optimizer.step()
    return values(model)


def values(model: nn.Module) -> list[torch.Tensor]:
    """The parameters as they are now."""
    return [p.detach().clone() for p in model.parameters()]


def by_age(step: int, age: int, every: int) -> bool:
    """A schedule of statistics without a start in which they are taken in every step."""
    return age >= every


def same(actual: Any, expected: Any) -> bool:
    """Bit for bit."""
    pairs = list(zip(actual, expected, strict=True))
    assert pairs
    return all(a is e if a is None else torch.equal(a, e) for a, e in pairs)


def error(actual: Any, expected: Any) -> float:
    """The worst over the tensors, each as one slice."""
    return max(slice_error(a, e, axes=()) for a, e in zip(actual, expected, strict=True))


def moments(layers: Pairs, x: Any, knobs: Knobs, *, centered: bool) -> list[Any]:
    """(mean, sigma) [O, I] of every layer, the oracle's; for weightings that need no gradient."""
    found, a = [], np.asarray(x)
    for (weight, bias), gate in zip(layers, GATES, strict=True):
        z = a @ np.asarray(weight).T + np.asarray(bias)
        s = oracle.sample_weight(z, z, gate, knobs.weighting)
        at = oracle.moments(a, s, knobs, centered=centered)
        pair = at.mean, at.sigma / oracle.unit(at, knobs)
        found.append([torch.tensor(np.broadcast_to(v, weight.T.shape).T) for v in pair])
        a = oracle.GATES[gate or "identity"][0](z)
    return found


def reference(
    make: Callable[[Pairs], list[Any]], knobs: Knobs = Knobs(), *, centered: bool = True
) -> Iterator[list[torch.Tensor]]:
    """The parameters after each step of the inner optimizers in explicit coordinates."""
    x, y = data()
    layers = initial()
    inside = [(w.clone().requires_grad_(), b.clone().requires_grad_()) for w, b in layers]
    optimizers = make(inside)

    def back(found: Any) -> Pairs:
        weights = [w / sigma for (w, _), (_, sigma) in zip(inside, found, strict=True)]
        return [
            (w, b - (mean * w).sum(1))
            for w, (_, b), (mean, _) in zip(weights, inside, found, strict=True)
        ]

    while True:
        found = moments(layers, x, knobs, centered=centered)
        for (w, b), (at_w, at_b), (mean, sigma) in zip(layers, inside, found, strict=True):
            at_w.data, at_b.data = sigma * w, b + (mean * w).sum(1)
            at_w.grad = at_b.grad = None
        (w, b), (last, last_bias) = back(found)
        out = F.linear(F.silu(F.linear(x, w, b)), last, last_bias)
        (((out - y) ** 2).sum() / 2).backward()
        for optimizer in optimizers:
            optimizer.step()
        layers = [(w.detach(), b.detach()) for w, b in back(found)]
        yield [p for pair in layers for p in pair]
