"""Warnings about new rows, once for all splits: of cut texts, lost words, missing splits and missing labels."""

from collections.abc import Mapping, Sequence

import numpy as np
from datasets import Dataset

from papa_lightning.either_lightning import rank_zero_warn

COUNTERS = ("truncated", "cut_words", "vanished", "repaired", "num_words")
"""Columns of tokenised rows that count words and losses. Batches have none of them, except num_words in prediction."""


def tally(splits: Mapping[str, Dataset], counter: str) -> tuple[int, str]:
    """Sum of one of `COUNTERS` over tokenised rows, and its parts by the name of their file."""
    total, places = 0, []
    for name, rows in splits.items():
        counts = rows.data.column(counter).to_numpy().astype(np.int64)
        total += int(counts.sum())
        first = f", first in row {int(np.argmax(counts > 0)) + 1}" if counts.any() else ""
        places.append(f"{name} {int(counts.sum())}{first}")
    return total, "; ".join(places)


def report_truncation(task: str, splits: Mapping[str, Dataset], setting: str) -> None:
    """Warn of texts that were cut, and of words of a token task that lost their labels."""
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
    """Warn of an evaluation on another split, or on fewer splits; `used` are those that exist for the role."""
    if role == "test" and used[0] not in role_splits["test"]:
        rank_zero_warn(f"{task} has no test split with labels: testing on the validation split.")
    missing = [names[split] for split in role_splits.get(role, ()) if split not in used]
    if role == "validation" and missing:
        found = ", ".join(names[split] for split in used)
        rank_zero_warn(f"{task} has no split {', '.join(map(repr, missing))}: validating on {found!r} only.")


def report_labels(
    task: str, train: Mapping[str, Dataset], others: Mapping[str, Dataset], label_names: Sequence[str], column: str
) -> None:
    """Warn of labels that occur only in training or only in validation rows, and of rows that all have one label."""
    (learned_from,), known = train, _labels(train)
    if len(known) == 1 < len(label_names) and _labels(others) == known:
        rank_zero_warn(
            f"{task}: all rows, also those to validate on, have the label {label_names[min(known)]!r} of column "
            f"{column!r}, so nothing can be learnt or scored. Limited numbers of rows are from the start of a split: "
            "shuffle files that are sorted by label, or take more rows."
        )
    for name, rows in others.items():
        pairs = ((name, rows, learned_from, known), (learned_from, train[learned_from], name, _labels({name: rows})))
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
    """Labels that occur in tokenised rows."""
    found: set[int] = set()
    for rows in splits.values():
        for chunk in rows.data.column("labels").chunks:
            values = chunk.flatten() if hasattr(chunk, "flatten") else chunk
            found |= {label for label in values.unique().to_pylist() if label >= 0}
    return found


def _first_row(rows: Dataset, label: int) -> int:
    """Number, from 1, of the first row with a label."""
    return next(n for n, found in enumerate(rows["labels"], 1) if found == label or np.isin(label, found))
