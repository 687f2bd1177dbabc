"""One neuron behind a gate: its coordinates, its block, Gaussian inputs in closed form.

Letters as on the page: u = (1, x), theta = (b, w), P the change of coordinates, G = E[s h u u^T].
NumPy in float64.
"""

import math
from typing import NamedTuple

import numpy as np

Array = np.ndarray


class Gated(NamedTuple):
    """A neuron whose inputs are x ~ N(0, 1) in each direction, active where w.x > alpha, |w| = 1.

    Attributes:
        share: of the samples on which it is active.
        shift: lambda, how far the mean of the active inputs lies along w.
        shrunk: delta = lambda (lambda - alpha), by how much the variance along w is smaller; in
            (0, 1).
    """

    share: float
    shift: float
    shrunk: float


def gated(alpha: float) -> Gated:
    """Moments of a standard normal variable above a threshold.

    With h = phi(alpha) / (1 - Phi(alpha)), the inverse Mills ratio: mean h, variance 1 - h (h -
    alpha). (Johnson, Kotz and Balakrishnan, Continuous Univariate Distributions 1, section 10.1.)
    """
    share = math.erfc(alpha / math.sqrt(2)) / 2
    shift = math.exp(-(alpha**2) / 2) / math.sqrt(2 * math.pi) / share
    return Gated(share, shift, shift * (shift - alpha))


def coordinates(mean: Array, sigma: Array) -> Array:
    """P: theta = P theta~, b = b~ - mean . w~ / sigma, w = w~ / sigma."""
    p = np.diag(np.concatenate([[1.0], 1 / sigma]))
    p[0, 1:] = -mean / sigma
    return p


def block(x: Array, weight: Array) -> Array:
    """G / sum of the weights: the second moments of u = (1, x) over the active samples."""
    u = np.concatenate([np.ones((len(x), 1)), x], axis=1)
    return (u * weight[:, None]).T @ u / weight.sum()


def block_of(mean: Array, covariance: Array) -> Array:
    """The same from the moments of the inputs over the active samples."""
    size = len(mean)
    result = np.empty((size + 1, size + 1))
    result[0, 0] = 1
    result[0, 1:] = result[1:, 0] = mean
    result[1:, 1:] = covariance + np.outer(mean, mean)
    return result


def correlation(covariance: Array) -> Array:
    """With a diagonal of ones."""
    sigma = np.sqrt(np.diag(covariance))
    return covariance / np.outer(sigma, sigma)


def condition(matrix: Array) -> float:
    """Largest over smallest eigenvalue of a symmetric matrix."""
    values = np.linalg.eigvalsh(matrix)
    return float(values[-1] / values[0])


def gated_block(direction: Array, mean: Array, alpha: float) -> tuple[Array, Array, Array]:
    """Mean and covariance of x ~ N(mean, 1), gated, and the block G / mass.

    Args:
        direction: of the neuron's weight, of length 1.
        mean: of the inputs.
        alpha: threshold of w . (x - mean).
    """
    at = gated(alpha)
    moved = mean + at.shift * direction
    covariance = np.eye(len(mean)) - at.shrunk * np.outer(direction, direction)
    return moved, covariance, block_of(moved, covariance)


def condition_bound(direction: Array, alpha: float) -> float:
    """An upper bound on the condition number in the neuron's coordinates, whatever the mean.

    (1 - d min w^2) / ((1 - d) (1 - d max w^2)), d = delta(alpha).
    """
    d, squares = gated(alpha).shrunk, direction**2
    return float((1 - d * squares.min()) / ((1 - d) * (1 - d * squares.max())))


def plain_bound(mean: Array, covariance: Array) -> float:
    """A lower bound on the condition number without coordinates: (1 + |mu|^2)^2 / (e^T C e)."""
    square = float(mean @ mean)
    e = mean / np.sqrt(square)
    return (1 + square) ** 2 / float(e @ covariance @ e)
