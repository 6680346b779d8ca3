"""Checks of the rows of token tasks: lists of words and tags, of the same length."""

import json
from collections.abc import Sequence
from typing import Any

from papa_lightning.datamodules.rows.checks import HIDDEN_LABEL, allowed_labels, is_hidden, label_id, row_error
from papa_lightning.tag_schemes import Scheme, fit_tags


def word_lists(values: Sequence[Any], rows: Sequence[int], column: str, source: str) -> list[list[str]]:
    """The words of a column, at least one a row: lists, or texts (words between blanks, or a JSON list)."""
    found = []
    for value, row in zip(values, rows, strict=True):
        words = _cells(value, row, column, source, "words")
        if not words:
            raise row_error(source, row, column, "is empty", "give the row a text, or remove it")
        for number, word in enumerate(words, start=1):
            if not isinstance(word, str) or not word:
                remedy = "write a word there, or remove it and its tag"
                raise row_error(source, row, column, f"has {word!r} as word {number}", remedy)
        found.append(words)
    return found


def tag_ids(
    values: Sequence[Any],
    words: Sequence[Sequence[str]],
    rows: Sequence[int],
    label_names: Sequence[str],
    columns: tuple[str, str],
    source: str,
) -> list[list[int]]:
    """The tags of a column as numbers, one a word; a tag may be given by number or by name."""
    found = []
    for value, row_words, row in zip(values, words, rows, strict=True):
        tags = _cells(value, row, columns[1], source, "tags")
        if len(tags) != len(row_words):
            wrong = f"has {len(tags)} tags, but column {columns[0]!r} has {len(row_words)} words"
            raise row_error(source, row, columns[1], wrong, "give every word one tag")
        ids = [label_id(tag, label_names) for tag in tags]
        if None in ids:
            number = ids.index(None)
            wrong = f"has {tags[number]!r} at word {number + 1} ({row_words[number]!r}), which is no label of this task"
            raise row_error(source, row, columns[1], wrong, f"use one of {allowed_labels(label_names)}")
        found.append([number for number in ids if number is not None])
    return found


def fit_tag_ids(tags: Sequence[int], kept: Sequence[int], label_names: Sequence[str], scheme: Scheme) -> list[int]:
    """Tags, by number, of the words that are left of a sentence, see `fit_tags`; the task may lack new ones."""
    names = list(label_names)
    wanted = fit_tags([names[tag] for tag in tags], kept, scheme)
    return [names.index(name) if name in names else tags[word] for name, word in zip(wanted, kept, strict=True)]


def has_tags(values: Sequence[Any], label_names: Sequence[str] = ()) -> bool:
    """Whether a column holds any tag that is not missing or hidden (-1, -100, or `_` as in CoNLL-U, if no names)."""
    missing = {"_", ""} - set(label_names)
    return any(
        not (tag is None or tag in missing or is_hidden(tag, label_names, (HIDDEN_LABEL, -100)))
        for value in values
        for tag in (value if isinstance(value, list) else [value])
    )


def _cells(value: Any, row: int, column: str, source: str, kind: str) -> list[Any]:
    """Entries of a cell: a list, or its text."""
    if isinstance(value, list):
        return value
    if value is None:
        return []
    if not isinstance(value, str):
        raise row_error(source, row, column, f"is {value!r}, not a list", f"write a list of {kind}")
    text = value.strip()
    if text.startswith("[") and text.endswith("]"):
        try:
            entries = json.loads(text)
        except json.JSONDecodeError:
            entries = None
        if isinstance(entries, list) and (kind == "tags" or all(isinstance(entry, str) for entry in entries)):
            return entries
        if text.startswith(("['", '["')):
            remedy = f"write the {kind} with blanks between them, or as a JSON list with double quotes"
            raise row_error(source, row, column, f"begins with {text[:20]!r}, which is no JSON list", remedy)
    return text.split()
