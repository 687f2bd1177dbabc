"""What a layer's step is divided by, so that one rate fits layers of all kinds. Pure.

In its standardized coordinates a neuron's curvature is at most h (1 + l) P: h the curvature of the
loss at z, averaged over the samples; 1 for the bias; l the largest eigenvalue of the correlation of
the inputs; P how many positions share the kernel. A step divided by (1 + l) P is stable at a rate
that depends on h alone. But where a batch has few samples for the inputs of a neuron, noise limits
the rate before the curvature does. Measured (``python -m experiments step-scale``, three networks,
four batch sizes, one seed): the best rates lie within a factor 18 with no divisor, with this one
and with (1 + fan-in) P, and within 6 with max(fan-in / samples, 1).
"""

import math

import jax
import jax.numpy as jnp

from jaxnorm.statistics.batch import Batch

_ITERATIONS = 6


def divisor(batch: Batch) -> jax.Array:
    """The divisor of the step, ()."""
    operation, rule, x, z = batch.operation, batch.rule, batch.row_x, batch.row_g_z
    one = jnp.ones((), x.dtype)
    fan_in, samples = math.prod(batch.kernel.shape[:-1]), operation.samples(z)
    if rule.step_scale == "none" or samples == 0:
        return one
    count, positions = batch.total(batch.samples * one), batch.positions
    if batch.counts is not None:
        count = jnp.where(count > 0, count, 1)
    if rule.step_scale == "bnp":
        return jnp.maximum(fan_in / count, 1)
    if rule.step_scale == "fan_in":
        return (1 + fan_in) * positions * one
    few = operation.narrow(batch.kernel, -1, operation.groups).astype(x.dtype)
    x = x - operation.over_samples(batch.mean, x)
    x_count = batch.total(batch.x_samples * one)
    variance = batch.total(batch.counted_sum(x * x)) / jnp.where(x_count > 0, x_count, 1)
    sigma = jnp.sqrt(variance + rule.damping * jnp.mean(variance) + rule.epsilon)
    x = x / operation.over_samples(jnp.where(sigma > 0, sigma, 1), x)

    # Any mixture of the samples, so that the order of the inputs does not matter.
    number = jnp.arange(samples, dtype=x.dtype)
    if batch.counts is not None:  # of those that count
        number = jnp.cumsum(batch.counts.reshape(-1) > 0, dtype=x.dtype) - 1
    mixture = batch.counted(jnp.cos(number).reshape(*z.shape[:-1], 1))
    mixture = jnp.broadcast_to(mixture, (*z.shape[:-1], operation.groups))
    direction = batch.total(operation.kernel_grad(x, few, mixture))
    largest = jnp.sqrt(jnp.sum(direction * direction))
    for _ in range(_ITERATIONS):
        direction = direction / jnp.where(largest > 0, largest, 1)
        direction = (
            batch.total(operation.kernel_grad(x, few, batch.counted(operation.apply(x, direction))))
            / count
        )
        largest = jnp.sqrt(jnp.sum(direction * direction))
    return (1 + largest) * positions
