"""Which rows of a batch the neurons' own sums are taken over (`Rule.statistics_rows`). Pure."""

import torch

#: The most rows that lie side by side, and the fewest blocks that there are of more than one row.
_LONGEST, _BLOCKS = 64, 16


def blocks(batch: int, rows: int) -> tuple[int, int]:
    """(k, b): of every b k rows that follow one another the first b, at least `rows` in all.

    k is as large as it may be, so of a batch that has few divisors more are taken, or all. A block
    is long enough to mix what comes in turns, and there are enough blocks to mix what is sorted,
    and to leave each device its own where the batch is spread over some.
    """
    every = next(k for k in range(batch // rows, 0, -1) if batch % k == 0)
    block = 1
    while 2 * block <= min(rows // _BLOCKS, _LONGEST) and batch % (2 * block * every) == 0:
        block *= 2
    return every, block


def spaced(x: torch.Tensor, rows: int | None) -> torch.Tensor:
    """At least so many rows of a tensor in `blocks`, a view where a block is one; None: all."""
    batch = x.shape[0]
    if rows is None or rows >= batch:
        return x
    every, block = blocks(batch, rows)
    if every == 1:
        return x
    return x.unflatten(0, (-1, every * block))[:, :block].flatten(0, 1)


def spaced_among(counted: torch.Tensor, rows: int) -> torch.Tensor:
    """The places of so many rows, evenly spaced among the M that count.

    Where there are fewer, all of these, and others behind them.
    """
    order = torch.argsort((~counted).to(torch.uint8), stable=True)
    number = counted.sum().clamp_min(rows)
    return order[torch.arange(rows, device=order.device) * number // rows]
