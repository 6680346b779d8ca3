"""Text and tables for people, in a terminal, a file or a page."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table as RichTable

#: Controls, formats (which can turn the order of letters around), halves of letters, ends of lines.
_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_WIDEST = 10_000


def printable(text: str) -> str:
    r"""Text in which nothing can steer a terminal: controls but tabs and ends of lines are spelled out.

    Args:
        text: Of anywhere, such as the name of a column in a file.

    Example:
        >>> printable("red \x1b[31m, and so on")
        'red \\x1b[31m, and so on'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_spelled(one) if unicodedata.category(one) in _UNSAFE and one not in "\n\t" else one for one in text)


@dataclass(frozen=True)
class Table:
    """A table: plain columns as text, :meth:`markdown` for pages, and drawn by rich in a terminal.

    Args:
        columns: Titles of the columns; all empty for a table without a head.
        rows: Cells as they are shown, one for each column.
        left: Number of columns, from the first on, that are aligned to the left; the others are aligned to the right.

    Example:
        >>> print(Table(("kind", "score"), [("constant", "0.8"), ("none", "0.81")]))
        kind      score
        constant    0.8
        none       0.81
        >>> print(Table(("kind", "score"), [("constant", "0.8")]).markdown())
        | kind | score |
        | --- | ---: |
        | constant | 0.8 |
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1

    def __str__(self) -> str:
        """The cells in columns, without lines."""
        from rich.console import Console

        console = Console(file=StringIO(), width=_WIDEST, color_system=None, highlight=False, emoji=False)
        console.print(self._drawn(lines=False))
        text = console.file.getvalue()  # type: ignore[attr-defined]
        return "\n".join(line.rstrip() for line in text.splitlines())

    def __rich__(self) -> RichTable:
        """What a terminal shows."""
        return self._drawn(lines=True)

    def markdown(self) -> str:
        """The table in Markdown."""
        marks = ["---" if place < self.left else "---:" for place in range(len(self.columns))]
        lines = [self.columns, marks, *([cell.replace("|", "\\|") for cell in row] for row in self.rows)]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def _drawn(self, lines: bool) -> RichTable:
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        headed = any(self.columns)
        style = box.SIMPLE_HEAD if lines and headed else None
        table = RichTable(box=style, show_header=headed, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0))
        for place, title in enumerate(self.columns):
            table.add_column(Text(printable(title)), justify="left" if place < self.left else "right", no_wrap=True)
        for row in self.rows:
            table.add_row(*(Text(printable(cell)) for cell in row))
        return table


def tell(*found: object) -> None:
    """Print text and tables, one below the other.

    Args:
        found: Tables, and anything else as its :func:`printable` text. Where the output is no terminal, tables are
            plain text.
    """
    for one in found:
        if isinstance(one, Table) and sys.stdout.isatty():
            from rich.console import Console

            Console().print(one)
        else:
            print(printable(str(one)))


def _spelled(letter: str) -> str:
    return letter.encode("unicode_escape").decode()
