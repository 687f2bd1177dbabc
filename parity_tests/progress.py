"""How far a long command is: a bar on a terminal, a line now and then elsewhere; on stderr."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from datetime import timedelta
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Item = TypeVar("Item")

#: Seconds between two lines where there is no terminal.
EVERY = 20.0


def track(items: Sequence[Item], name: Callable[[Item], str]) -> Generator[Item, None, None]:
    """Yield the items and show which one is at work, how many are done, and the time left.

    Args:
        items: what is to be done.
        name: what an item is called.
    """
    console = Console(stderr=True)
    return (_bar if console.is_terminal else _lines)(items, name, console)


def _bar(
    items: Sequence[Item], name: Callable[[Item], str], console: Console
) -> Generator[Item, None, None]:
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(items))
        for item in items:
            progress.update(task, description=name(item))
            yield item
            progress.advance(task)


def _lines(
    items: Sequence[Item], name: Callable[[Item], str], console: Console
) -> Generator[Item, None, None]:
    start = last = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if done and now - last >= EVERY:
            last, gone = now, now - start
            left = timedelta(seconds=round(gone / done * (len(items) - done)))
            text = f"{done} of {len(items)}, {timedelta(seconds=round(gone))} gone, "
            console.print(f"{text}about {left} left: {name(item)}", markup=False, soft_wrap=True)
        yield item
