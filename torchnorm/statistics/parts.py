"""Statistics of a weight of several parts (experts), stacked on a first axis. Pure.

`parts` is the number of parts, 0 for a layer of which there is one.
"""

from collections.abc import Sequence
from typing import Any

import torch

from torchnorm.coordinates import Coordinates
from torchnorm.statistics import merging
from torchnorm.statistics.tracked import Statistics


def stacked(each: Sequence[Statistics]) -> Statistics:
    """Those of all parts, in one."""
    return Statistics(
        *(None if values[0] is None else torch.stack(values) for values in zip(*each, strict=True))
    )


def unstacked(statistics: Statistics) -> list[Statistics]:
    """Those of each part."""
    parts = len(statistics.scalars)
    fields = (parts * [None] if v is None else v.unbind(0) for v in statistics)
    return [Statistics(*values) for values in zip(*fields, strict=True)]


def merge(old: Statistics, new: Statistics, parts: int, **memory: Any) -> Statistics:
    """`merging.merge`, part by part."""
    if not parts:
        return merging.merge(old, new, **memory)
    pairs = zip(unstacked(old), unstacked(new), strict=True)
    return stacked([merging.merge(*pair, **memory) for pair in pairs])


def usable(statistics: Statistics, neurons: int) -> torch.Tensor:
    """Whether there are any, of parts for each of all neurons, [neurons, 1]."""
    return (statistics.calls > 0).repeat_interleave(neurons // len(statistics.scalars))[:, None]


def coordinates(
    statistics: Statistics, parts: int, neurons: int, fixed: Any = None, *, settles: bool
) -> Coordinates:
    """`merging.coordinates`; of parts those of all neurons, [neurons, I]."""
    if not parts:
        return merging.coordinates(statistics, fixed, settles=settles)
    each = unstacked(statistics)
    which = parts * [fixed] if fixed is None or fixed is True else fixed.chunk(parts)
    found = [
        merging.coordinates(one, of, settles=settles) for one, of in zip(each, which, strict=True)
    ]
    mean, scale, varies = zip(*found, strict=True)
    flags = [
        torch.ones_like(at.scale) if at.varies is None else at.varies.to(at.scale.dtype)
        for at in found
    ]
    some = any(flag is not None for flag in varies)
    return Coordinates(
        _joined(mean, neurons), _joined(scale, neurons), _joined(flags, neurons) if some else None
    )


def _joined(values: Sequence[torch.Tensor], neurons: int) -> torch.Tensor:
    """What is one row for each part, or one for each of its neurons, for each of all neurons."""
    each = neurons // len(values)
    rows = (value.reshape(-1, value.shape[-1] if value.ndim else 1) for value in values)
    return torch.cat([row.expand(each, -1) for row in rows])
