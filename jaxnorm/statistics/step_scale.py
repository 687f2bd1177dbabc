"""What a layer's step is divided by, so that one rate fits layers of all kinds. Pure.

In its standardized coordinates a neuron's curvature is at most h (1 + l) P: h the curvature of the
loss at z, averaged over the samples; 1 for the bias; l the largest eigenvalue of the correlation of
the inputs; P how many positions share the kernel. A step divided by (1 + l) P is stable at a rate
that depends on h alone. But where a batch has few samples for the inputs of a neuron, noise limits
the rate before the curvature does. Measured (``python -m experiments rates``, three networks, four
batch sizes, one seed): the best rates lie within a factor 18 with no divisor, with this one and
with (1 + fan-in) P, and within 6 with max(fan-in / samples, 1).
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxnorm.operations.linear import LinearOperation
from jaxnorm.rule import StepScale

_ITERATIONS = 6


def divisor(
    step_scale: StepScale,
    operation: LinearOperation,
    x: jax.Array,
    kernel: jax.Array,
    z: jax.Array,
    damping: Any,
    epsilon: Any,
    total: Callable[[Any], Any] = lambda values: values,
) -> jax.Array:
    """The divisor of the step, ().

    Args:
        step_scale: see `Rule`.
        operation: the layer's linear operation.
        x: inputs [..., C].
        kernel: gives shapes and types only.
        z: as x; gives the shape.
        damping: see `Rule`.
        epsilon: see `Rule`.
        total: the sum over all devices that share the batch.
    """
    one = jnp.ones((), x.dtype)
    fan_in, samples = math.prod(kernel.shape[:-1]), operation.samples(z)
    positions = math.prod(z.shape[z.ndim - 1 - operation.spatial_axes : -1])
    if step_scale == "none" or samples == 0:
        return one
    if step_scale == "bnp":
        return jnp.maximum(fan_in / total(samples * one), 1)
    if step_scale == "fan_in":
        return (1 + fan_in) * positions * one
    few = operation.narrow(kernel, -1, operation.groups).astype(x.dtype)
    count = total(operation.samples(x) * one)
    x = x - operation.over_samples(total(operation.bias_grad(x)) / count, x)
    variance = total(operation.bias_grad(x * x)) / count
    sigma = jnp.sqrt(variance + damping * jnp.mean(variance) + epsilon)
    x = x / operation.over_samples(jnp.where(sigma > 0, sigma, 1), x)
    count = total(samples * one)

    # Any mixture of the samples, so that the order of the inputs does not matter.
    mixture = jnp.cos(jnp.arange(samples, dtype=x.dtype)).reshape(*z.shape[:-1], 1)
    mixture = jnp.broadcast_to(mixture, (*z.shape[:-1], operation.groups))
    direction = total(operation.kernel_grad(x, few, mixture))
    largest = jnp.sqrt(jnp.sum(direction * direction))
    for _ in range(_ITERATIONS):
        direction = direction / jnp.where(largest > 0, largest, 1)
        direction = total(operation.kernel_grad(x, few, operation.apply(x, direction))) / count
        largest = jnp.sqrt(jnp.sum(direction * direction))
    return (1 + largest) * positions
