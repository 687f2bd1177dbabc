"""Burgers' equation for a physics-informed network; nothing is read."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from experiments.workloads.base import Samples, Workload

if TYPE_CHECKING:
    from jax import Array

VISCOSITY = 0.01 / math.pi
INSIDE, AT_START, AT_ENDS, TEST = 8000, 1000, 1000, 2000
"""Points within, at t = 0, at x = -1 or 1, and those where the solution is compared."""
NODES = 200
"""Of the integrals of the solution."""


class Burgers(Workload):
    """u_t + u u_x = (0.01 / pi) u_xx on 0 < t < 1 and -1 < x < 1.

    With u(0, x) = -sin(pi x), and u = 0 at the ends of x.

    The problem and the loss of Raissi, Perdikaris and Karniadakis (2019): a mean squared residual
    and a mean squared error at the edges, nothing measured within. Inputs [N, 2] are (t, x);
    targets [N, 2] are 1 at the edges and 0 within, and the solution, which the loss reads at the
    edges only.
    """

    name = "burgers"
    title = "Burgers' equation"
    loss_name = "squared residual and error at the edges"
    test_name = "test squared error"
    outputs = 1

    def __init__(self) -> None:
        """Draw the points, always the same."""
        rng = np.random.default_rng(0)
        within = np.stack([rng.uniform(0, 1, INSIDE), rng.uniform(-1, 1, INSIDE)], axis=-1)
        start = np.stack([np.zeros(AT_START), rng.uniform(-1, 1, AT_START)], axis=-1)
        ends = np.stack([rng.uniform(0, 1, AT_ENDS), rng.choice([-1.0, 1.0], AT_ENDS)], axis=-1)
        test = np.stack([rng.uniform(0, 1, TEST), rng.uniform(-1, 1, TEST)], axis=-1)
        edge = np.repeat([0, 1], [INSIDE, AT_START + AT_ENDS])
        self.train = _samples(np.concatenate([within, start, ends]), edge)
        self.test = _samples(test, np.zeros(TEST))

    @classmethod
    def load(cls, data_dir: Path | None = None) -> Self:
        """Make the points; `data_dir` is not used."""
        return cls()

    def loss(self, outputs: "Array", targets: "Array") -> "Array":
        """Mean squared residual within and mean squared error at the edges, added."""
        import jax.numpy as jnp

        u, u_t, u_x, u_xx = outputs.T
        edge, solution = targets.T
        residual, error = u_t + u * u_x - VISCOSITY * u_xx, u - solution

        def mean(squares: "Array", weight: "Array") -> "Array":
            return (weight * squares).sum() / jnp.maximum(weight.sum(), 1)

        return mean(residual**2, 1 - edge) + mean(error**2, edge)

    def score(self, outputs: "Array", targets: "Array") -> "Array":
        """Squared error of each point."""
        return (outputs[:, 0] - targets[:, 1]) ** 2


def _samples(points: np.ndarray, edge: np.ndarray) -> Samples:
    targets = np.stack([edge, solution(*points.T)], axis=-1)
    return Samples(points.astype(np.float32), targets.astype(np.float32))


def solution(t: np.ndarray, x: np.ndarray) -> np.ndarray:
    """u(t, x), by the transformation of Cole and Hopf, its integrals by Gauss and Hermite.

    Args:
        t: [N], in [0, 1].
        x: [N], in [-1, 1].
    """
    nodes, weights = np.polynomial.hermite.hermgauss(NODES)
    at = x[:, None] - np.sqrt(4 * VISCOSITY * t)[:, None] * nodes
    exponents = -np.cos(np.pi * at) / (2 * np.pi * VISCOSITY)
    heat = weights * np.exp(exponents - exponents.max(axis=1, keepdims=True))
    return -(heat * np.sin(np.pi * at)).sum(axis=1) / heat.sum(axis=1)
