"""The frameworks differ as `DIFFERENCES.md` says: each row is measured again."""

from pathlib import Path

import pytest

from parity_tests.differences.command import INTRODUCTION, TABLES
from parity_tests.differences.row import Row, measured
from parity_tests.numerics import exact

PAGE = (Path(__file__).parent / "DIFFERENCES.md").read_text()
SAME = "The same, against expectation"
CASES = [(title, row) for title, rows in TABLES.items() for row in rows]


@pytest.fixture(autouse=True, scope="module")
def _as_printed():
    """Not with the strict promotion of other tests."""
    with exact():
        yield


@pytest.mark.parametrize(("title", "row"), CASES, ids=[row.what[:60] for _, row in CASES])
def test_a_row_is_as_printed(title, row):
    flax, torch = measured(row.flax), measured(row.torch)
    assert f"\n| {row.what} | {flax} | {torch} | {row.remedy} |\n" in PAGE
    assert (flax == torch) == (title == SAME)


def test_the_page_has_nothing_else():
    """No row that is no longer measured; in the order of the command."""
    assert PAGE.startswith(INTRODUCTION)
    lines = [line for line in PAGE.splitlines() if line.startswith("| ")]
    printed = [line.split(" | ")[0].removeprefix("| ") for line in lines]
    assert [p for p in printed if p not in ("|", ":--")] == [row.what for _, row in CASES]


def test_errors_and_arrays_have_words():
    """A row whose answer is of another kind than before does not look like the old one."""
    assert measured(lambda: 1 / 0) == "ZeroDivisionError"
    assert measured(lambda: (2, 3)) == "(2, 3)"
    assert measured(lambda: Row) != measured(lambda: 0.5) == "0.5"
