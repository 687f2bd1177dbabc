"""What the studies share: where they print, and what they leave behind."""

import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from rich.console import Console

from experiments.records.files import atomic, prepare_folder, write_text
from experiments.report.drawing import SETTINGS


def begin(out: Path, console: Console | None) -> Console:
    """Make the folder; the console, wide enough for a table where it is no terminal."""
    prepare_folder(out)
    return console or Console(width=None if sys.stdout.isatty() else 240)


def publish(stem: Path, text: str, draw: Callable[[], Figure], console: Console) -> None:
    """Print the table and write it as ``.md``, and the figure as ``.png``."""
    write_text(stem.with_suffix(".md"), text)
    with matplotlib.rc_context(SETTINGS), atomic(stem.with_suffix(".png")) as temporary:
        draw().savefig(temporary, dpi=160)
    console.print(text, highlight=False, markup=False)
