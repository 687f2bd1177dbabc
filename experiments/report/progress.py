"""How far a job is, and the time left: a bar on a terminal, a line now and then in a pipe."""

import sys
import time
from datetime import timedelta
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar

EVERY = 15.0
"""Seconds between two lines in a pipe."""


def make_console(console: Console | None = None) -> Console:
    """The console that was given, or the terminal; in a pipe wide enough for a table."""
    return console or Console(width=None if sys.stdout.isatty() else 160)


class Progress:
    """Some work with a known end.

    Args:
        total: how much there is to do, in any unit.
        console: where to show it.
    """

    def __init__(self, total: float, console: Console) -> None:
        self.total, self.done, self.console, self.text = total, 0.0, console, ""
        text = TextColumn("{task.description:<12}", markup=False)
        columns = text, BarColumn(), TaskProgressColumn(), "elapsed", TimeElapsedColumn()
        lasting = {"disable": not console.is_terminal, "speed_estimate_period": 600.0}
        self._bar = Bar(*columns, "left", TimeRemainingColumn(), console=console, **lasting)
        self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> Self:
        """Begin to count the time."""
        self._begin = self._last = time.monotonic()
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Leave the bar, or the last line, where it is."""
        self._bar.stop()
        if self._bar.disable and exception[0] is None and self.total:
            self._line(time.monotonic())

    def describe(self, text: str) -> None:
        """Say what is at work."""
        self.text = text
        self._bar.update(self._task, description=text)

    def advance(self, amount: float) -> None:
        """Count what has been done since the last time."""
        self.done += amount
        self._bar.advance(self._task, amount)
        if self._bar.disable and (now := time.monotonic()) - self._last >= EVERY:
            self._line(now)

    def _line(self, now: float) -> None:
        self._last, elapsed = now, now - self._begin
        share = self.done / self.total
        left = timedelta(seconds=round(elapsed * (1 / share - 1))) if share else "unknown"
        shown = f"{share:4.0%}, elapsed {timedelta(seconds=round(elapsed))}, left {left}"
        self.console.print(f"{self.text}: {shown}", highlight=False, markup=False)
