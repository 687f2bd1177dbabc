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
    fan_in, samples = math.prod(batch.weight.shape[1:]), operation.samples(z)
    if rule.step_scale == "none":
        return one
    samples_of_all, positions = total(batch.samples * one), batch.positions
    if batch.counts is not None:
        samples_of_all = torch.where(samples_of_all > 0, samples_of_all, 1)
    if rule.step_scale == "bnp":
        return (fan_in / samples_of_all).clamp_min(1)
    if rule.step_scale == "fan_in":
        return (1 + fan_in) * positions * one
    few = batch.weight[: operation.groups].to(x.dtype)
    count = total(batch.x_samples * one)
    count = count if batch.counts is None else torch.where(count > 0, count, 1)
    x = x - operation.over_samples(total(batch.counted_sum(x)) / count)
    variance = total(batch.counted_sum(x * x)) / count
    sigma = (variance + rule.damping * variance.mean() + rule.epsilon).sqrt()
    x = x / operation.over_samples(torch.where(sigma > 0, sigma, 1))
    # Not a constant direction: in a convolution that could be orthogonal to the leading one.
    # Any mixture of the samples, so that the order of the inputs does not matter.
    axis = operation.channel_axis(z)
    number = torch.arange(samples, dtype=x.dtype, device=x.device)
    if batch.counts is not None:  # of those that count
        number = (batch.counts.reshape(-1) > 0).to(x.dtype).cumsum(0) - 1
    mixture = number.cos().reshape(*z.shape[:axis], 1, *z.shape[axis + 1 :])
    mixture = batch.counted(mixture)
    mixture = mixture.expand(*z.shape[:axis], operation.groups, *z.shape[axis + 1 :])
    direction = total(operation.kernel_grad(x, few, mixture))
    largest = (direction * direction).sum().sqrt()
    for _ in range(_ITERATIONS):
        direction = direction / torch.where(largest > 0, largest, 1)
        along = batch.counted(operation.apply(x, direction, None))
        direction = total(operation.kernel_grad(x, few, along)) / samples_of_all
        largest = (direction * direction).sum().sqrt()
    return (1 + largest) * positions
