"""One weight of several parts (experts): the samples of each, and their statistics."""

from collections.abc import Iterator
from typing import Any

import torch

from torchnorm.backward.deferred import handle_of
from torchnorm.backward.recorded import batch_statistics
from torchnorm.operations.linear import Dense
from torchnorm.rule import Rule
from torchnorm.statistics.batch import make_batch
from torchnorm.statistics.parts import stacked
from torchnorm.statistics.tracked import Statistics
from torchnorm.statistics.weighting import needs_slope


def record_parts(
    z: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    centered: bool,
    gated: bool,
    rule: Rule,
    statistics: Statistics,
    ids: torch.Tensor | None = None,
    ends: torch.Tensor | None = None,
    masked: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(z, handle) as of a layer with ``gate=DEFERRED``; z's gradient leaves each part's statistics.

    A sample counts for the part that it was sent to. Where every part has as many rows (a buffer
    of some capacity), a row whose gradient is exactly 0 in all neurons of the part is none: nothing
    of it comes back, be it that no sample was put there, or that what comes of it is thrown away.
    But where the slope is 0 in all neurons, too, what is not 0 in the row is a sample.

    Args:
        z: [parts, N, O]; [S, O] with ids or ends.
        x: [parts, N, I]; [S, I].
        weight: [O, I], of one part, of which only shape and dtype matter.
        centered: whether there is a bias.
        gated: whether the handle will be told a slope.
        rule: see `Rule`.
        statistics: stacked.
        ids: [S], the part of each sample.
        ends: [parts], where the samples of each part end.
        masked: whether there are rows that do not count: then those whose gradient is 0 do not,
            wherever they were sent.
    """
    arguments = (centered, gated, rule, masked, ids, ends, *statistics)
    return _RecordedParts.apply(z, x.detach(), weight, *arguments)


class _RecordedParts(torch.autograd.Function):
    """The gradient at the statistics is those of this batch, part by part."""

    @staticmethod
    def forward(z, x, weight, centered, gated, rule, masked, ids, ends, *statistics):
        return torch.ops.aten._unsafe_view(z, z.shape), handle_of(z)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, x, weight, centered, gated, rule, masked, ids, ends, *statistics = inputs
        ctx.save_for_backward(x, ids, ends, Statistics(*statistics).mean)
        ctx.shape, ctx.dtype = weight.shape, weight.dtype
        ctx.centered, ctx.rule, ctx.masked, ctx.count = centered, rule, masked, len(statistics)
        ctx.gated = gated and needs_slope(rule.weighting)

    @staticmethod
    def backward(ctx, g_z, g_handle):
        needed = ctx.needs_input_grad[-ctx.count :]
        rest = [None] * 8
        if not any(needed):
            return g_z, *rest, *[None] * ctx.count
        x, ids, ends, centers = ctx.saved_tensors
        found: list[Statistics] = []
        told = g_handle if ctx.gated else None
        with torch.no_grad(), torch.autocast(g_z.device.type, enabled=False):
            which = _rows(len(centers), x, g_z, told, ids, ends, masked=ctx.masked)
            for part, rows in enumerate(which):
                inputs, gradient, slope = (
                    None if a is None else (a[part] if a.ndim > 2 else a)[rows]
                    for a in (x, g_z, told)
                )
                assert inputs is not None
                assert gradient is not None
                weight = x.new_empty((), dtype=ctx.dtype).expand(ctx.shape)
                batch = make_batch(
                    Dense(), inputs, weight, gradient, slope, ctx.rule, centered=ctx.centered
                )
                found.append(batch_statistics(batch, centers[part]))
            new = stacked(found)
        return g_z, *rest, *(v if need else None for v, need in zip(new, needed, strict=True))


def _rows(
    parts: int,
    x: torch.Tensor,
    g_z: torch.Tensor,
    slope: Any,
    ids: Any,
    ends: Any,
    *,
    masked: bool,
) -> Iterator[Any]:
    """Which rows are those of each part."""
    start, stops = 0, None if ends is None else ends.tolist()
    for part in range(parts):
        if ids is None and stops is None:
            sent = (g_z[part] != 0).any(-1)
            if slope is not None and not masked:
                # Nothing comes back through a gate that is closed for all neurons.
                sent |= (slope[part] == 0).all(-1) & (x[part] != 0).any(-1)
            yield sent
        elif stops is None:
            yield (ids == part) & (g_z != 0).any(-1) if masked else ids == part
        else:
            rows, start = slice(start, stops[part]), stops[part]
            if masked:
                yield (g_z[rows] != 0).any(-1).nonzero()[:, 0] + rows.start
            else:
                yield rows
