"""Optimizers as their papers have them: what they make of one gradient. NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

#: (gradient, memory or None) -> (minus the step at a rate of 1, memory).
Rule = Callable[[np.ndarray, Any], tuple[np.ndarray, Any]]

MOMENTUM, BETA1, BETA2, EPSILON = 0.9, 0.9, 0.999, 1e-8


def sgd(gradient: np.ndarray, memory: Any) -> tuple[np.ndarray, Any]:
    """Gradient descent."""
    return gradient, memory


def momentum(gradient: np.ndarray, memory: Any) -> tuple[np.ndarray, Any]:
    """Heavy ball."""
    velocity = gradient if memory is None else MOMENTUM * memory + gradient
    return velocity, velocity


def nesterov(gradient: np.ndarray, memory: Any) -> tuple[np.ndarray, Any]:
    """Looking ahead."""
    velocity, _ = momentum(gradient, memory)
    return gradient + MOMENTUM * velocity, velocity


def adam(gradient: np.ndarray, memory: Any) -> tuple[np.ndarray, Any]:
    """Kingma and Ba; AdamW is this one with a decay beside it."""
    zero = np.zeros_like(gradient)
    count, first, second = (0, zero, zero) if memory is None else memory
    count += 1
    first = BETA1 * first + (1 - BETA1) * gradient
    second = BETA2 * second + (1 - BETA2) * gradient**2
    root = np.sqrt(second / (1 - BETA2**count)) + EPSILON
    return first / (1 - BETA1**count) / root, (count, first, second)


RULES: dict[str, Rule] = {
    "sgd": sgd,
    "momentum": momentum,
    "nesterov": nesterov,
    "adam": adam,
    "adamw": adam,
}
