"""What the backward pass of a layer knows, made once. Nothing else thins rows."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist

from torchnorm import masks
from torchnorm.operations.linear import LinearOperation
from torchnorm.rule import Rule


@dataclass(frozen=True, eq=False)
class Batch:
    """The samples of one backward pass: all of them, and the rows that the statistics use.

    Attributes:
        operation: the layer's linear operation.
        rule: see `Rule`.
        x: inputs, channels where PyTorch has them.
        weight: gives shapes only.
        g_z: gradient at z.
        row_x: x on the rows that the statistics use, in at least float32.
        row_g_z: g_z on these rows.
        slope: phi'(z) on these rows (see `gate_slope`), or None where it is 1.
        centered: False where there is no bias to absorb a mean: second moments about zero.
        process_group: processes over which the batch is spread, or None.
        counts: how often each sample of z counts on these rows, as z of one channel, or None: once.
        x_counts: the same of the samples of x, whose positions may be others.
    """

    operation: LinearOperation
    rule: Rule
    x: torch.Tensor
    weight: torch.Tensor
    g_z: torch.Tensor
    row_x: torch.Tensor
    row_g_z: torch.Tensor
    slope: torch.Tensor | None
    centered: bool
    process_group: Any
    counts: torch.Tensor | None = None
    x_counts: torch.Tensor | None = None

    @property
    def samples(self) -> Any:
        """How many the statistics use, of this process."""
        return self.operation.samples(self.row_g_z) if self.counts is None else self.counts.sum()

    @property
    def x_samples(self) -> Any:
        """The same of the samples of x."""
        return self.operation.samples(self.row_x) if self.x_counts is None else self.x_counts.sum()

    @property
    def positions(self) -> Any:
        """How many of them share an image."""
        space = list(range(self.operation.channel_axis(self.row_g_z) + 1, self.row_g_z.ndim))
        if self.counts is None or not space:
            return math.prod(self.row_g_z.shape[axis] for axis in space)
        samples, images = self.total((self.samples, self.counts.amax(space).sum()))
        return samples / images.clamp_min(1)

    @property
    def mean(self) -> torch.Tensor:
        """The mean of the inputs [C]."""
        count = self.row_x.new_ones(()) * self.x_samples
        total, count = self.total((self.counted_sum(self.row_x), count))
        return total / torch.where(count > 0, count, 1)

    def counted_sum(self, x: torch.Tensor) -> torch.Tensor:
        """The sum over the samples of x [C], as often as each counts."""
        return self.operation.bias_grad(x if self.x_counts is None else x * self.x_counts)

    def counted(self, s: torch.Tensor) -> torch.Tensor:
        """The weight s of each sample of z, as often as it counts."""
        return s if self.counts is None else s * self.counts

    def total(self, values: Any) -> Any:
        """The sums over all processes that share the batch, of a tuple of tensors or Nones."""
        return values if self.process_group is None else total(values, self.process_group)

    def maximum(self, values: torch.Tensor) -> torch.Tensor:
        """The largest value of each neuron, over all processes too; keeps the axes."""
        axes = self.operation.sample_axes(values)
        if self.operation.samples(values) == 0:  # this process has no share of the batch
            values = values.new_zeros([1 if k in axes else n for k, n in enumerate(values.shape)])
        top = values.amax(axes, keepdim=True) if axes else values.clone()
        if self.process_group is not None:
            dist.all_reduce(top, dist.ReduceOp.MAX, self.process_group)
        return top


def total(values: Any, process_group: Any) -> Any:
    """The sums over the processes, of a tuple of tensors or Nones, in one collective."""
    present = [value for value in values if value is not None]
    flat = torch.cat([value.reshape(-1) for value in present])
    dist.all_reduce(flat, group=process_group)
    pieces = iter(flat.split([value.numel() for value in present]))
    return tuple(v if v is None else next(pieces).reshape(v.shape) for v in values)


def make_batch(
    operation: LinearOperation,
    x: torch.Tensor,
    weight: torch.Tensor,
    g_z: torch.Tensor,
    slope: torch.Tensor | None,
    rule: Rule,
    *,
    centered: bool,
    process_group: Any = None,
    mask: torch.Tensor | None = None,
) -> Batch:
    """The slope may be whole, or without a mask cut to its rows already.

    The mask says how often each sample of z counts, with the axes of these samples.
    """
    rows, dtype = rule.statistics_rows, torch.promote_types(x.dtype, torch.float32)
    counts = None if mask is None else mask.unsqueeze(operation.channel_axis(g_z)).to(dtype)
    slope = None if slope is None else operation.first_rows(slope, rows, counts)
    row_x, row_g_z = (operation.first_rows(a, rows, counts).to(dtype) for a in (x, g_z))
    batch = Batch(operation, rule, x, weight, g_z, row_x, row_g_z, slope, centered, process_group)
    if counts is None:
        return batch
    counts = operation.first_rows(counts, rows, counts)
    axis = operation.channel_axis(row_x)
    x_counts = masks.fitted(counts.squeeze(axis), operation.sample_shape(row_x), row_x)
    x_counts = x_counts.unsqueeze(axis)
    # What does not count may be anything, NaN too; of an image that counts, it is some tap's input.
    space = list(range(axis + 1, row_x.ndim))
    counted = (x_counts.amax(space, keepdim=True) if space else x_counts) > 0
    row_x, row_g_z = torch.where(counted, row_x, 0), torch.where(counts > 0, row_g_z, 0)
    return replace(batch, row_x=row_x, row_g_z=row_g_z, counts=counts, x_counts=x_counts)
