"""What the backward pass of a layer knows, made once. Nothing else thins rows."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

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

    @property
    def samples(self) -> int:
        """How many the statistics use, of this process."""
        return self.operation.samples(self.row_g_z)

    @property
    def mean(self) -> torch.Tensor:
        """The mean of the inputs [C]."""
        count = self.row_x.new_full((), self.operation.samples(self.row_x))
        total, count = self.total((self.operation.bias_grad(self.row_x), count))
        return total / count.clamp_min(1)

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
) -> Batch:
    """The slope may be whole, or cut to its rows already."""
    rows, dtype = rule.statistics_rows, torch.promote_types(x.dtype, torch.float32)
    slope = None if slope is None else operation.first_rows(slope, rows)
    row_x, row_g_z = (operation.first_rows(a, rows).to(dtype) for a in (x, g_z))
    return Batch(operation, rule, x, weight, g_z, row_x, row_g_z, slope, centered, process_group)
