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

import torch

from torchnorm.statistics.batch import Batch

_ITERATIONS = 6


def divisor(batch: Batch) -> torch.Tensor:
    """The divisor of the step, (), over all processes that share the batch."""

    def total(values: torch.Tensor) -> torch.Tensor:
        return batch.total((values,))[0]

    rule = batch.rule
    operation, x, z = batch.operation, batch.row_x, batch.row_g_z
    one = x.new_ones(())
    fan_in, samples = math.prod(batch.weight.shape[1:]), batch.samples
    positions = math.prod(z.shape[operation.channel_axis(z) + 1 :])
    if rule.step_scale == "none":
        return one
    if rule.step_scale == "bnp":
        return (fan_in / total(samples * one)).clamp_min(1)
    if rule.step_scale == "fan_in":
        return (1 + fan_in) * positions * one
    few = batch.weight[: operation.groups].to(x.dtype)
    count = total(operation.samples(x) * one)
    x = x - operation.over_samples(total(operation.bias_grad(x)) / count)
    variance = total(operation.bias_grad(x * x)) / count
    sigma = (variance + rule.damping * variance.mean() + rule.epsilon).sqrt()
    x = x / operation.over_samples(torch.where(sigma > 0, sigma, 1))
    count = total(samples * one)
    # Not a constant direction: in a convolution that could be orthogonal to the leading one.
    # Any mixture of the samples, so that the order of the inputs does not matter.
    axis = operation.channel_axis(z)
    mixture = torch.arange(samples, dtype=x.dtype, device=x.device).cos()
    mixture = mixture.reshape(*z.shape[:axis], 1, *z.shape[axis + 1 :])
    mixture = mixture.expand(*z.shape[:axis], operation.groups, *z.shape[axis + 1 :])
    direction = total(operation.kernel_grad(x, few, mixture))
    largest = (direction * direction).sum().sqrt()
    for _ in range(_ITERATIONS):
        direction = direction / torch.where(largest > 0, largest, 1)
        image = operation.kernel_grad(x, few, operation.apply(x, direction, None))
        direction = total(image) / count
        largest = (direction * direction).sum().sqrt()
    return (1 + largest) * positions
