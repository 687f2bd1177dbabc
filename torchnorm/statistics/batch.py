"""What the backward pass of a layer knows, made once. Nothing else thins rows."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from torchnorm import masks
from torchnorm.operations.linear import LinearOperation
from torchnorm.rule import Rule


@dataclass(frozen=True, eq=False)
class Samples:
    """Some samples of a batch, as sums take them.

    Attributes:
        x: their inputs, in at least float32; 0 where a sample does not count.
        g_z: the gradient at z.
        counts: how often each sample of z counts, as z of one channel, or None: once.
    """

    x: torch.Tensor
    g_z: torch.Tensor
    counts: torch.Tensor | None = None

    def counted(self, s: torch.Tensor) -> torch.Tensor:
        """The weight s of each sample of z, as often as it counts."""
        return s if self.counts is None else s * self.counts


@dataclass(frozen=True, eq=False)
class Batch:
    """The samples of one backward pass: all of them, and the rows that the neurons' sums use.

    Attributes:
        operation: the layer's linear operation.
        rule: see `Rule`.
        x: inputs, channels where PyTorch has them.
        weight: gives shapes only.
        g_z: gradient at z.
        every: all samples, of which the layer's own sums are taken.
        rows: those of which the sums of its neurons are taken.
        slope: phi'(z) on these rows (see `gate_slope`), or None where it is 1.
        centered: False where there is no bias to absorb a mean: second moments about zero.
        process_group: processes over which the batch is spread, or None.
        x_counts: how often each sample of x counts, as x of one channel, whose positions may be
            others than those of z; None: once.
    """

    operation: LinearOperation
    rule: Rule
    x: torch.Tensor
    weight: torch.Tensor
    g_z: torch.Tensor
    every: Samples
    rows: Samples
    slope: torch.Tensor | None
    centered: bool
    process_group: Any
    x_counts: torch.Tensor | None = None

    @property
    def samples(self) -> Any:
        """How many there are, of this process."""
        counts = self.every.counts
        return self.operation.samples(self.g_z) if counts is None else counts.sum()

    @property
    def x_samples(self) -> Any:
        """The same of the samples of x."""
        return self.operation.samples(self.x) if self.x_counts is None else self.x_counts.sum()

    @property
    def mean(self) -> torch.Tensor:
        """The mean of the inputs [C]."""
        sums, count = self.counted_sum(self.every.x), self.x_samples
        if self.process_group is None and isinstance(count, int):
            return sums / max(count, 1)
        sums, count = self.total((sums, sums.new_ones(()) * count))
        return sums / torch.where(count > 0, count, 1)

    def counted_sum(self, x: torch.Tensor) -> torch.Tensor:
        """The sum over the samples of x [C], as often as each counts."""
        return self.operation.bias_grad(x if self.x_counts is None else x * self.x_counts)

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
    x_counts, every = None, x
    if counts is not None:
        axis = operation.channel_axis(x)
        known = counts.squeeze(operation.channel_axis(counts))
        x_counts = masks.fitted(known, operation.sample_shape(x), every).unsqueeze(axis)
        # What does not count may be anything, NaN; of an image that counts, it is some tap's input.
        space = list(range(axis + 1, x.ndim))
        every = torch.where((x_counts.amax(space, True) if space else x_counts) > 0, x, 0)
    slope = None if slope is None else operation.spaced_rows(slope, rows, counts)
    row_x, row_g_z = (operation.spaced_rows(a, rows, counts).to(dtype) for a in (every, g_z))
    row_counts = counts
    if counts is not None:
        row_counts = operation.spaced_rows(counts, rows, counts)
        row_g_z = torch.where(row_counts > 0, row_g_z, 0)
    return Batch(
        operation,
        rule,
        x,
        weight,
        g_z,
        Samples(every.to(dtype), g_z, counts),
        Samples(row_x, row_g_z, row_counts),
        slope,
        centered,
        process_group,
        x_counts,
    )
