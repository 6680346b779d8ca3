"""Readers of the CoNLL formats, which the datasets library lacks."""

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from datasets import Dataset, Features, List, Value

from papa_lightning.datamodules.reading.files import check_not_empty, check_utf8, store_rows
from papa_lightning.datamodules.reading.formats import open_text, suffix_of
from papa_lightning.errors import DataError

COLUMN_SUFFIXES = (".conll", ".bio", ".txt")
"""Suffixes of files with one word a line."""

CONLLU_SUFFIX = ".conllu"
"""Suffix of a file of Universal Dependencies."""

# Part of the identity of stored rows: raise it when a file is read in another way.
_VERSION = 2

_CONLLU_COLUMNS = 10

Places = tuple[int, int]
"""Number of the column of the words and of the tags, from 0, or from -1 backwards."""


def read_conll(path: Path, word_column: str, tag_column: str, places: Places | None = None) -> Dataset:
    """Read a file with one word a line and its tags beside it: one row a sentence, memory-mapped.

    Columns are separated by tabs, or by blanks if the first word has no tab behind it; an empty line ends a sentence.
    Every line has the same number of columns; with one only, there are no tags. Lines that begin with -DOCSTART- are
    left out, and so are comments: lines before the first word of a sentence that begin with # and have another number
    of columns than the words. A .conllu file is read by the rules of Universal Dependencies instead: comments, ranges
    of multiword tokens (`8-9`) and empty nodes (`8.1`) are left out.

    `places` are the numbers of the columns of word and tag, from 0, or from -1 backwards. None: the first and the last
    one, in a .conllu file those of the forms and of the universal parts of speech (UPOS).

    Source: Tjong Kim Sang and De Meulder, "Introduction to the CoNLL-2003 Shared Task", 2003;
    https://universaldependencies.org/format.html.
    """
    check_not_empty(path)
    check_utf8(path)
    universal = suffix_of(path) == CONLLU_SUFFIX
    separator, width = ("\t", _CONLLU_COLUMNS) if universal else _shape(path)
    names = [word_column, tag_column] if width > 1 else [word_column]
    used = (places or ((1, 3) if universal else (0, -1)))[: len(names)]

    def rows() -> Iterator[dict[str, list[str]]]:
        lines = _conllu_lines(path) if universal else _conll_lines(path, separator, width)
        yield from _sentences(path, lines, names, used)

    types = Features(dict.fromkeys(names, List(Value("string"))))
    return store_rows(path, rows, types, _VERSION, names, used)


def _sentences(
    path: Path, lines: Iterator[tuple[int, list[str]] | None], names: list[str], places: tuple[int, ...]
) -> Iterator[dict[str, list[str]]]:
    """Sentences of a file."""
    sentence: list[list[str]] = []
    count = 0
    for line in chain(lines, [None]):
        if line is not None:
            sentence.append(_cells(path, *line, places))
        elif sentence:
            yield {name: [cells[n] for cells in sentence] for n, name in enumerate(names)}
            sentence, count = [], count + 1
    if not count:
        raise DataError(f"{str(path)!r} holds no sentences: write at least one into it, or remove it.")


def _cells(path: Path, number: int, columns: list[str], places: tuple[int, ...]) -> list[str]:
    """Word and tag of a line."""
    try:
        cells = [columns[place] for place in places]
    except IndexError as error:
        reason = f"the columns {places} are asked for"
        raise _line_error(path, number, len(columns), max(places) + 1, reason) from error
    if "" in cells:
        raise DataError(f"{str(path)!r}, line {number}: a word or tag is empty: fill it in, or remove the line.")
    return cells


def _conll_lines(path: Path, separator: str, width: int) -> Iterator[tuple[int, list[str]] | None]:
    """Number and columns of every word, None at the end of a sentence."""
    begins = True
    for number, line in _lines(path):
        if _ends(line):
            yield None
            begins = True
            continue
        columns = _columns(line, separator)
        if len(columns) == width:
            yield number, columns
            begins = False
        elif not (begins and line.startswith("#")):
            raise _line_error(path, number, len(columns), width, "the first word of the file has so many")


def _conllu_lines(path: Path) -> Iterator[tuple[int, list[str]] | None]:
    """Number and columns of every word, None at the end of a sentence."""
    for number, line in _lines(path):
        if not line.strip():
            yield None
        elif not line.startswith("#"):
            columns = line.split("\t")
            if len(columns) != _CONLLU_COLUMNS:
                raise _line_error(path, number, len(columns), _CONLLU_COLUMNS, "CoNLL-U has so many, between tabs")
            if not re.search("[-.]", columns[0]):
                yield number, columns


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number, from 1, and text of every line."""
    with open_text(path) as lines:
        for number, line in enumerate(lines, start=1):
            text = line.rstrip("\r\n")
            if "\r" in text:
                raise DataError(f"{str(path)!r}, line {number} holds a carriage return: remove it.")
            yield number, text


def _ends(line: str) -> bool:
    """Whether a line separates sentences."""
    return not line.strip(" \t") or line.startswith("-DOCSTART-")


def _columns(line: str, separator: str) -> list[str]:
    """The columns of a line."""
    return line.split("\t") if separator == "\t" else re.split("[ \t]+", line.strip(" \t"))


def _shape(path: Path) -> tuple[str, int]:
    """Separator and number of columns of the first word; a line with # counts only without another one."""
    first = ""
    for _, line in _lines(path):
        if not _ends(line):
            first = line if not (first and line.startswith("#")) else first
            if not line.startswith("#"):
                break
    separator = "\t" if "\t" in first else " "
    return separator, len(_columns(first, separator))


def _line_error(path: Path, number: int, found: int, expected: int, reason: str) -> DataError:
    """The error for a line with a wrong number of columns."""
    return DataError(
        f"{str(path)!r}, line {number} has {found} columns, but expected are {expected} ({reason}): mend it."
    )
