"""What is said about new rows, once for all splits: what was cut or lost, and labels that only some splits have."""

from collections.abc import Mapping, Sequence

import numpy as np
from datasets import Dataset

from papa_lightning.either_lightning import rank_zero_warn

COUNTERS = ("truncated", "cut_words", "vanished", "repaired", "num_words")
"""Columns of tokenised rows that count words, and what was lost or changed; batches do not hold them, but for the
number of words where they are predicted."""


def tally(splits: Mapping[str, Dataset], counter: str) -> tuple[int, str]:
    """Add up one of the counters.

    Args:
        splits: Tokenised rows by name of their file.
        counter: One of `COUNTERS`.

    Returns:
        The sum, and where it comes from.

    Example:
        >>> tally({"train.jsonl": Dataset.from_dict({"repaired": [0, 0, 2]})}, "repaired")
        (2, 'train.jsonl 2, first in row 3')
    """
    total, places = 0, []
    for name, rows in splits.items():
        counts = rows.data.column(counter).to_numpy().astype(np.int64)
        total += int(counts.sum())
        first = f", first in row {int(np.argmax(counts > 0)) + 1}" if counts.any() else ""
        places.append(f"{name} {int(counts.sum())}{first}")
    return total, "; ".join(places)


def report_truncation(task: str, splits: Mapping[str, Dataset], setting: str) -> None:
    """Say how many texts did not fit, and how many words of a token task lost their labels with that.

    Args:
        task: Name of the task.
        splits: Tokenised rows by name of their file.
        setting: The length and layout.
    """
    if not splits:
        return
    (cut, places), total = tally(splits, "truncated"), sum(map(len, splits.values()))
    if not cut:
        return
    words = tally(splits, "cut_words")[0] if all("cut_words" in rows.column_names for rows in splits.values()) else 0
    lost = f" {words} words found no slot and are neither trained on nor scored." if words else ""
    rank_zero_warn(
        f"{task}: {cut} of {total} examples ({cut / total:.1%}) do not fit {setting} and were cut ({places}): raise "
        f"max_length to keep them.{lost}"
    )


def report_missing_splits(
    task: str, role: str, role_splits: Mapping[str, Sequence[str]], names: Mapping[str, str], used: Sequence[str]
) -> None:
    """Say what is not evaluated, or not on the split that was asked for.

    Args:
        task: Name and source of the task.
        role: What the splits serve.
        role_splits: The splits that every role wants.
        names: Names of the splits.
        used: The splits that serve the role.
    """
    if role == "test" and used[0] not in role_splits["test"]:
        rank_zero_warn(f"{task} has no test split with labels: testing on the validation split.")
    missing = [names[split] for split in role_splits.get(role, ()) if split not in used]
    if role == "validation" and missing:
        found = ", ".join(names[split] for split in used)
        rank_zero_warn(f"{task} has no split {', '.join(map(repr, missing))}: validating on {found!r} only.")


def report_labels(
    task: str, train: Mapping[str, Dataset], others: Mapping[str, Dataset], label_names: Sequence[str], column: str
) -> None:
    """Say which labels only the training rows have, or only those of validation.

    Args:
        task: Name of the task.
        train: Tokenised training rows by name of their file.
        others: Tokenised rows of validation by name of their file.
        label_names: Names of the labels, by number.
        column: Name of the column of labels.
    """
    (learnt_from,), known = train, _labels(train)
    for name, rows in others.items():
        pairs = ((name, rows, learnt_from, known), (learnt_from, train[learnt_from], name, _labels({name: rows})))
        found = []
        for here, its_rows, there, there_labels in pairs:
            extra = sorted(_labels({here: its_rows}) - there_labels)
            places = [f"{label_names[label]!r} (row {_first_row(its_rows, label)})" for label in extra]
            found += [f"{here} has {', '.join(places)}, which {there} lacks"] if places else []
        if found:
            rank_zero_warn(
                f"{task}: labels of column {column!r} that occur in some splits only: {'; '.join(found)}. What no "
                "training row shows cannot be learnt, and what only training rows show is not scored."
            )


def _labels(splits: Mapping[str, Dataset]) -> set[int]:
    """The labels that occur in tokenised rows."""
    found: set[int] = set()
    for rows in splits.values():
        for chunk in rows.data.column("labels").chunks:
            values = chunk.flatten() if hasattr(chunk, "flatten") else chunk
            found |= {label for label in values.unique().to_pylist() if label >= 0}
    return found


def _first_row(rows: Dataset, label: int) -> int:
    """Number, from 1, of the first row with a label."""
    return next(n for n, found in enumerate(rows["labels"], 1) if found == label or np.isin(label, found))
