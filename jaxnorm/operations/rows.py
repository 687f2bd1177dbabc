"""Which rows of a batch the neurons' own sums are taken over (`Rule.statistics_rows`). Pure."""

import jax
import jax.numpy as jnp
from jax import lax

#: The most rows that lie side by side, and the fewest blocks that there are of more than one row.
_LONGEST, _BLOCKS = 64, 16
#: j is split into parts below and above this where j M is more than 32 bits hold.
_SPLIT = 1024


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


def spaced(x: jax.Array, rows: int | None, axis: int) -> jax.Array:
    """At least so many rows of an array in `blocks`, by a slice and not a gather; None: all."""
    batch = x.shape[axis]
    if rows is None or rows >= batch:
        return x
    every, block = blocks(batch, rows)
    if every == 1:
        return x
    before, behind = x.shape[:axis], x.shape[axis + 1 :]
    x = x.reshape(*before, batch // (every * block), every * block, *behind)
    x = lax.slice_in_dim(x, 0, block, axis=axis + 1)
    return x.reshape(*before, batch // every, *behind)


def spaced_among(counted: jax.Array, rows: int) -> jax.Array:
    """The places of so many rows, evenly spaced among the M that count.

    Where there are fewer, all of these, and others behind them.
    """
    order = jnp.argsort(~counted, stable=True)
    number = jnp.maximum(jnp.sum(counted), rows)
    # floor(j M / R), in numbers that fit into 32 bits up to R = 2^20.
    every, rest = number // rows, number % rows
    j = jnp.arange(rows)
    high, low = j // _SPLIT, j % _SPLIT
    part, left = high * rest // rows, high * rest % rows
    return order[j * every + _SPLIT * part + (_SPLIT * left + low * rest) // rows]
