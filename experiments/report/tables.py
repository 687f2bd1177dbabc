"""Tables: one for the terminal and for Markdown files."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table as RichTable
from rich.text import Text


@dataclass(frozen=True)
class Table:
    """Some rows under their headings; the first column is of words, the others of numbers.

    Attributes:
        headings: of the columns.
        rows: cells; ``**cell**`` stands out.
        title: above it on the terminal.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""

    def markdown(self) -> str:
        """The table, without its title, for a Markdown file."""
        rule = [":--", *["--:"] * (len(self.headings) - 1)]
        lines = [self.headings, rule, *self.rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"

    def __rich__(self) -> RichTable:
        """The table for a terminal, whose width it keeps to."""
        title = Text(self.title) if self.title else None
        table = RichTable(title=title, box=box.SIMPLE_HEAD, title_justify="left")
        for index, heading in enumerate(self.headings):
            table.add_column(Text(heading), justify="right" if index else "left")
        for row in self.rows:
            table.add_row(*map(Text, row))
        return table
