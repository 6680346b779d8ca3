"""Checks of the rows of token tasks: lists of words and tags, of the same length."""

import json
from collections.abc import Sequence
from typing import Any

from papa_lightning.datamodules.rows.checks import HIDDEN_LABEL, allowed_labels, is_hidden, label_id, row_error
from papa_lightning.tag_schemes import Scheme, fit_tags


def word_lists(values: Sequence[Any], rows: Sequence[int], column: str, source: str) -> list[list[str]]:
    """Return the words of one column, at least one a row and none of them empty.

    A cell may be a list, or, as in csv and tsv files, a text: words between blanks, or a JSON list.

    Args:
        values: The column's values.
        rows: Number of each row in its file, from 0.
        column: Name of the column.
        source: Source of the rows, for messages.

    Returns:
        One list of words per row.

    Raises:
        DataError: A row has no words, or something that is no word.

    Example:
        >>> word_lists([["EU", "rejects"], "EU rejects", '["EU", "rejects"]'], [0, 1, 2], "tokens", "train.csv")
        [['EU', 'rejects'], ['EU', 'rejects'], ['EU', 'rejects']]
    """
    found = []
    for value, row in zip(values, rows, strict=True):
        words = _cells(value, row, column, source, "words")
        if not words:
            raise row_error(source, row, column, "is empty", "give the row a text, or remove it")
        for number, word in enumerate(words, start=1):
            if not isinstance(word, str) or not word:
                raise row_error(
                    source,
                    row,
                    column,
                    f"has {word!r} as word {number}",
                    "write a word there, or remove it and its tag",
                )
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
    """Return the tags of one column as numbers; a tag may be given by number or by name.

    Args:
        values: The column's values: lists, or texts as in `word_lists`.
        words: The words of each row.
        rows: Number of each row in its file, from 0.
        label_names: Names of the task's tags, by number.
        columns: Names of the columns of words and of tags.
        source: Source of the rows, for messages.

    Returns:
        One number from 0 to len(label_names) - 1 per word.

    Raises:
        DataError: A row has more or fewer tags than words, or something that is no tag of the task.

    Example:
        >>> tag_ids([["NOUN", 1]], [["dogs", "bark"]], [0], ("NOUN", "VERB"), ("tokens", "upos"), "train.jsonl")
        [[0, 1]]
    """
    found = []
    for value, row_words, row in zip(values, words, rows, strict=True):
        tags = _cells(value, row, columns[1], source, "tags")
        if len(tags) != len(row_words):
            raise row_error(
                source,
                row,
                columns[1],
                f"has {len(tags)} tags, but column {columns[0]!r} has {len(row_words)} words",
                "give every word one tag",
            )
        ids = [label_id(tag, label_names) for tag in tags]
        if None in ids:
            number = ids.index(None)
            wrong = f"has {tags[number]!r} at word {number + 1} ({row_words[number]!r}), which is no label of this task"
            raise row_error(source, row, columns[1], wrong, f"use one of {allowed_labels(label_names)}")
        found.append([number for number in ids if number is not None])
    return found


def fit_tag_ids(tags: Sequence[int], kept: Sequence[int], label_names: Sequence[str], scheme: Scheme) -> list[int]:
    """Tags, by number, of the words that are left of a sentence; see `fit_tags`.

    Args:
        tags: Tags of all words, by number.
        kept: Numbers of the words that are left.
        label_names: Names of the tags.
        scheme: Scheme of the names.

    Returns:
        One tag for each word that is left; the old one where the task lacks the new one.

    Example:
        >>> fit_tag_ids([2, 2, 0, 1, 2], range(5), ("O", "B-PER", "I-PER"), "IOB2")
        [1, 2, 0, 1, 2]
    """
    names = list(label_names)
    wanted = fit_tags([names[tag] for tag in tags], kept, scheme)
    return [names.index(name) if name in names else tags[word] for name, word in zip(wanted, kept, strict=True)]


def has_tags(values: Sequence[Any], label_names: Sequence[str] = ()) -> bool:
    """Whether a column holds any tag: many test splits are published without.

    Args:
        values: The column's values.
        label_names: Names of the task's tags, by number.

    Returns:
        False if every tag is missing or hidden (-1, -100, or `_` as in CoNLL-U), where no tag has that name.

    Example:
        >>> has_tags([[-1, -1], None, ["_"]]), has_tags([["O"], None])
        (False, True)
    """
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
