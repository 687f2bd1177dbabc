"""Statistics of a weight of several parts (experts), stacked on a first axis. Pure.

`parts` is the number of parts, 0 for a layer of which there is one.
"""

from collections.abc import Sequence

import torch

from torchnorm.coordinates import Moments
from torchnorm.statistics import tracked
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


def merge(old: Statistics, new: Statistics, parts: int) -> Statistics:
    """`tracked.merge`, part by part."""
    if not parts:
        return tracked.merge(old, new)
    pairs = zip(unstacked(old), unstacked(new), strict=True)
    return stacked([tracked.merge(*pair) for pair in pairs])


def usable(statistics: Statistics, parts: int, neurons: int) -> torch.Tensor:
    """`tracked.usable`; of parts for each of all neurons, [neurons, 1]."""
    if not parts:
        return tracked.usable(statistics)
    return _joined([tracked.usable(each) for each in unstacked(statistics)], neurons)


def moments(statistics: Statistics, parts: int, neurons: int, *, centered: bool) -> Moments:
    """`tracked.moments`; of parts those of all neurons, [neurons, I]."""
    if not parts:
        return tracked.moments(statistics, centered=centered)
    found = [tracked.moments(each, centered=centered) for each in unstacked(statistics)]
    center, *rest = zip(*found, strict=True)
    return Moments(torch.stack(center), *(_joined(values, neurons) for values in rest))


def _joined(values: Sequence[torch.Tensor], neurons: int) -> torch.Tensor:
    """What is one row for each part, or one for each of its neurons, for each of all neurons."""
    each = neurons // len(values)
    rows = (value.reshape(-1, value.shape[-1] if value.ndim else 1) for value in values)
    return torch.cat([row.expand(each, -1) for row in rows])
