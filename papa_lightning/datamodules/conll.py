"""Words with tags in the CoNLL formats, which the datasets library does not read."""

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value

from papa_lightning.datamodules.files import check_not_empty, check_utf8
from papa_lightning.exceptions import DataError

COLUMN_SUFFIXES = (".conll", ".bio", ".txt")
"""Suffixes of files with one word a line."""

CONLLU_SUFFIX = ".conllu"
"""Suffix of a file of Universal Dependencies."""

# Part of the identity of stored rows: raise it when a file is read in another way.
_VERSION = 1

_CONLLU_COLUMNS = 10


def read_conll(path: Path, word_column: str, tag_column: str, places: tuple[int, int] = (0, -1)) -> Dataset:
    r"""Read a file with one word a line and its tags beside it; the rows stay on disk, memory-mapped.

    Columns are separated by tabs, or by blanks if the first line has no tab; an empty line ends a sentence; lines that
    begin with -DOCSTART- are left out. Every line has the same number of columns; with one only, there are no tags.
    A .conllu file is read by the rules of Universal Dependencies instead: comments, ranges of multiword tokens (`8-9`)
    and empty nodes (`8.1`) are left out, and the tag is the universal part of speech (UPOS).

    Source: Tjong Kim Sang and De Meulder, "Introduction to the CoNLL-2003 Shared Task", 2003;
    https://universaldependencies.org/format.html.

    Args:
        path: The file, in UTF-8.
        word_column: Name of the column of words in the result.
        tag_column: Name of its column of tags.
        places: Number of the column of the words and of the tags, from 0, or from -1 backwards.

    Returns:
        One row a sentence, words and tags as lists of strings.

    Raises:
        DataError: The file is empty, not in UTF-8, or a line has a wrong number of columns; the message names the line.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "train.conll")
        >>> _ = path.write_text("-DOCSTART- O\n\nEU NNP B-ORG\nrejects VBZ O\n\nPeter NNP B-PER\n")
        >>> read_conll(path, "tokens", "ner_tags").to_list()
        [{'tokens': ['EU', 'rejects'], 'ner_tags': ['B-ORG', 'O']}, {'tokens': ['Peter'], 'ner_tags': ['B-PER']}]
    """
    check_not_empty(path)
    check_utf8(path)
    tagged = path.suffix == CONLLU_SUFFIX or _columns_of_first_line(path) > 1
    names = [word_column, tag_column] if tagged else [word_column]
    stat = path.stat()
    try:
        rows: Dataset = Dataset.from_generator(
            _rows,
            features=Features(dict.fromkeys(names, List(Value("string")))),
            gen_kwargs={  # the last two only tell the cache that the file has changed, or how it is read
                "path": str(path),
                "names": tuple(names),
                "places": places,
                "stamp": (stat.st_mtime_ns, stat.st_size),
                "version": _VERSION,
            },
        )
    except Exception as error:  # the library wraps ours
        raise _cause(error) or error from error
    return rows


def _rows(
    path: str, names: tuple[str, ...], places: tuple[int, int], stamp: tuple[int, int], version: int
) -> Iterator[dict[str, list[str]]]:
    """The sentences of a file, in their order."""
    words = _conllu_words(path) if path.endswith(CONLLU_SUFFIX) else _conll_words(path, places)
    sentence: list[tuple[str, ...]] = []
    count = 0
    for word in chain(words, [None]):
        if word is not None:
            sentence.append(word)
        elif sentence:
            yield {name: [entry[n] for entry in sentence] for n, name in enumerate(names)}
            sentence, count = [], count + 1
    if not count:
        raise DataError(f"{path!r} holds no sentences: write at least one into it, or remove it.")


def _conll_words(path: str, places: tuple[int, int]) -> Iterator[tuple[str, ...] | None]:
    """Words with tags, None at the end of a sentence."""
    separator, width = None, 0
    for number, line in _lines(path):
        if not line.strip(" \t") or line.startswith("-DOCSTART-"):
            yield None
            continue
        separator = separator or ("\t" if "\t" in line else "[ \t]+")
        columns = re.split(separator, line if separator == "\t" else line.strip(" \t"))
        width = width or len(columns)
        if len(columns) != width:
            raise _line_error(path, number, len(columns), width, "the first line of the file has so many")
        try:
            word = tuple(columns[place] for place in (places if width > 1 else places[:1]))
        except IndexError as error:
            raise _line_error(path, number, width, max(places) + 1, f"the columns {places} are asked for") from error
        if "" in word:
            raise DataError(f"{path!r}, line {number}: a word or tag is empty: fill it in, or remove the line.")
        yield word


def _conllu_words(path: str) -> Iterator[tuple[str, ...] | None]:
    """Words with universal parts of speech, None at the end of a sentence."""
    for number, line in _lines(path):
        if not line.strip():
            yield None
        elif not line.startswith("#"):
            columns = line.split("\t")
            if len(columns) != _CONLLU_COLUMNS:
                raise _line_error(path, number, len(columns), _CONLLU_COLUMNS, "CoNLL-U has so many, between tabs")
            if not re.search("[-.]", columns[0]):
                yield columns[1], columns[3]


def _lines(path: str) -> Iterator[tuple[int, str]]:
    """Number, from 1, and text of every line."""
    with open(path, encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            yield number, line.rstrip("\r\n")


def _columns_of_first_line(path: Path) -> int:
    """Number of columns of the first line with a word, 0 without one."""
    for _, line in _lines(str(path)):
        if line.strip() and not line.startswith("-DOCSTART-"):
            return len(re.split("[ \t]+", line.strip(" \t")))
    return 0


def _line_error(path: str, number: int, found: int, expected: int, reason: str) -> DataError:
    """Describe a line with a wrong number of columns."""
    return DataError(f"{path!r}, line {number} has {found} columns, but expected are {expected} ({reason}): mend it.")


def _cause(error: BaseException | None) -> Any:
    """The DataError that another error was raised from, None if there is none."""
    while error is not None and not isinstance(error, DataError):
        error = error.__cause__ or error.__context__
    return error
