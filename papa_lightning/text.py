"""Text and tables for people, in a terminal, a file or a page."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.table import Table as RichTable

#: Unicode categories: controls, formats (which can reverse the order of letters), surrogates, separators of lines.
_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_WIDEST = 10_000


def printable(text: str) -> str:
    """Text that cannot control a terminal: control characters but tabs and ends of lines are spelled out."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        one.encode("unicode_escape").decode() if unicodedata.category(one) in _UNSAFE and one not in "\n\t" else one
        for one in text
    )


def counted(number: int, noun: str) -> str:
    """A number of things: "1 task", "2 tasks"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


@dataclass(frozen=True)
class Table:
    """A table: plain columns as text, :meth:`markdown` for pages, and drawn by rich in a terminal.

    Args:
        columns: Titles of the columns; all empty for a table without a head.
        rows: Cells as they are shown, one for each column.
        left: Number of columns, from the first on, that are aligned to the left; the others are aligned to the right.
        title: Line above the table; empty for none.

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
    title: str = ""

    def __str__(self) -> str:
        """The title, and below it the cells in columns, without lines."""
        from rich.console import Console

        console = Console(file=StringIO(), width=_WIDEST, color_system=None, highlight=False, emoji=False)
        console.print(self._drawn(lines=False))
        lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
        return "\n".join([self.title] * bool(self.title) + [line.rstrip() for line in lines])

    def __rich__(self) -> RichTable:
        """The table as rich draws it."""
        return self._drawn(lines=True)

    def markdown(self) -> str:
        """The title and the table in Markdown."""
        marks = ["---" if place < self.left else "---:" for place in range(len(self.columns))]
        lines = [self.columns, marks, *([cell.replace("|", "\\|") for cell in row] for row in self.rows)]
        return "\n".join([f"{self.title}\n"] * bool(self.title) + [f"| {' | '.join(line)} |" for line in lines])

    def _drawn(self, lines: bool) -> RichTable:
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        headed = any(self.columns)
        style = box.SIMPLE_HEAD if lines and headed else None
        table = RichTable(box=style, show_header=headed, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0))
        for place, title in enumerate(self.columns):
            justify: Literal["left", "right"] = "left" if place < self.left else "right"
            # In a narrow terminal cells are wrapped, not cut off.
            table.add_column(Text(printable(title)), justify=justify, no_wrap=not lines, overflow="fold")
        for row in self.rows:
            table.add_row(*(Text(printable(cell)) for cell in row))
        return table


@dataclass(frozen=True)
class Blocks:
    """Paragraphs and tables, one below the other: plain as text, :meth:`markdown` for pages, or told."""

    parts: Sequence[Table | str]

    def __str__(self) -> str:
        """The parts as text, with an empty line between them."""
        return "\n\n".join(map(str, self.parts))

    def markdown(self) -> str:
        """The parts in Markdown, with an empty line between them."""
        return "\n\n".join(part.markdown() if isinstance(part, Table) else part for part in self.parts) + "\n"


def tell(*found: object) -> None:
    """Print tables, :class:`Blocks` and :func:`printable` text of anything else; plain where there is no terminal."""
    for one in found:
        if isinstance(one, Blocks) and sys.stdout.isatty():
            for place, part in enumerate(one.parts):
                tell(*[""] * bool(place), part)
        elif isinstance(one, Table) and sys.stdout.isatty():
            from rich.console import Console

            if one.title:
                print(printable(one.title))
            Console().print(one)
        else:
            print(printable(str(one)))
