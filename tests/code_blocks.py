"""Code blocks of the pages, and what a reader has beside them."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
#: A comment above a block says why it is not run, or which other test runs it.
_MARK = re.compile(r"<!-- (?:not run: |run by )(.*) -->")
_BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
#: Where zsh looks for files; a star is meant so.
_BRACKETS = re.compile(r"[][?{}]")


@dataclass(frozen=True)
class Block:
    """A fenced block: page, line, language, text, and the mark above it: why it is not run, or what runs it."""

    page: Path
    line: int
    language: str
    text: str
    reason: str | None

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT).as_posix()}:{self.line}"

    def commands(self) -> Iterator[list[str]]:
        """Words of each command of a shell block, without comments."""
        for line in self.text.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words


def blocks_of(page: Path) -> list[Block]:
    """All fenced blocks of a page."""
    text, found = page.read_text(encoding="utf-8"), []
    for match in _BLOCK.finditer(text):
        above = text[: match.start()].rstrip("\n").rpartition("\n")[2]
        mark = _MARK.fullmatch(above.strip())
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(page, line, match[2], dedent(match[3]), mark and mark[1]))
    return found


def unquoted(line: str) -> bool:
    """Whether a shell line has a bracket or a question mark outside of quotes.

    >>> unquoted("pip install x[y]"), unquoted('pip install "x[y]"'), unquoted("papa x  # [y]")
    (True, False, False)
    """
    code = re.sub(r"'[^']*'|\"[^\"]*\"", "", line)
    return bool(_BRACKETS.search(re.sub(r"(^|\s)#.*", "", code)))
