"""The progress on a terminal and in a pipe, and the one table."""

import io

import pytest
from rich.console import Console

from experiments.report import progress
from experiments.report.progress import Progress
from experiments.report.tables import Table


def shown(terminal: bool) -> str:
    """What four equal parts of some work look like."""
    file = io.StringIO()
    console = Console(file=file, width=100, force_terminal=terminal)
    with Progress(8.0, console) as bar:
        bar.describe("digging")
        for _ in range(4):
            bar.advance(2.0)
    return file.getvalue()


def test_a_pipe_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """Share, time gone and time left; with long pauses only the last one, and no control signs."""
    monkeypatch.setattr(progress, "EVERY", 0.0)
    lines = shown(terminal=False).splitlines()
    assert [line.split(",")[0].split()[-1] for line in lines] == [
        "25%",
        "50%",
        "75%",
        *["100%"] * 2,
    ]
    assert all("digging:" in line and ", left 0:00:0" in line for line in lines)
    monkeypatch.setattr(progress, "EVERY", 60.0)
    (line,) = shown(terminal=False).splitlines()
    assert line == "digging: 100%, elapsed 0:00:00, left 0:00:00"


def test_a_terminal_gets_a_bar() -> None:
    """With the same words."""
    text = shown(terminal=True)
    for word in ("digging", "100%", "elapsed", "left", "━"):
        assert word in text


def test_time_left_is_that_of_the_work_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter took ten seconds: thirty are left. Before anything is done it is unknown."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    file = io.StringIO()
    with Progress(8.0, Console(file=file, width=100)) as bar:
        now[0] = 20.0
        bar.advance(0.0)
        now[0] = 40.0
        bar.advance(2.0)
    lines = file.getvalue().splitlines()
    assert lines[0].endswith("0%, elapsed 0:00:20, left unknown")
    assert lines[1].endswith("25%, elapsed 0:00:40, left 0:02:00")


def test_table_in_both_forms() -> None:
    """Markdown to the letter; on the terminal the title and every cell, whatever is in it."""
    table = Table(["what", "much"], [["[red]", "**1**"], ["b", "2"]], "heading")
    assert table.markdown() == ("| what | much |\n| :-- | --: |\n| [red] | **1** |\n| b | 2 |\n")
    file = io.StringIO()
    Console(file=file, width=60).print(table)
    for word in ("heading", "what", "much", "[red]", "**1**"):
        assert word in file.getvalue()
