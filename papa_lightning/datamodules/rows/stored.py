"""Tokenised rows of a data module, in the cache of the datasets library."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from datasets import Dataset, Features
from datasets.fingerprint import Hasher

from papa_lightning.datamodules.reading.files import content_hash
from papa_lightning.datamodules.reading.formats import ID_COLUMNS, suffix_of
from papa_lightning.datamodules.rows.checks import check_columns, class_names, named, number_column
from papa_lightning.datamodules.rows.tokenizing import fingerprint
from papa_lightning.errors import DataError

if TYPE_CHECKING:
    from papa_lightning.datamodules.base import TaskDataModule

# Part of the identity of stored rows: raise it when `encode` of a data module gives other rows, or old rows are read
# from the cache.
ROWS_VERSION = 4


def data_fingerprint(module: TaskDataModule) -> str:
    """Identity of the data of a module by content, see `TaskDataModule.fingerprint`; it need not be set up."""
    if module.folder is not None:
        files = {name: module.split_file(split) for split, name in module.split_names.items()}
        contents = {name: [suffix_of(path), content_hash(path)] for name, path in files.items() if path is not None}
    else:
        splits = {name: module.load_split(split) for split, name in module.split_names.items()}
        contents = {name: [rows._fingerprint] for name, rows in splits.items() if rows is not None}
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()


def encode_rows(module: TaskDataModule, rows: Dataset, labelled: bool, where: str) -> Dataset:
    """Check and tokenise rows, without those of `skip_labels`, with the cache of the datasets library."""
    kept, label, skipped = module.needed_columns(labelled), module.label_column, module.skip_labels
    check_columns(rows.column_names, kept, where)
    kept = [*kept, *(name for name in module.optional_columns if name in rows.column_names)]
    ids = number_column(rows, ID_COLUMNS, where)
    names = class_names(rows.features.get(label), module.label_names) if labelled else None
    types, data = module.features(labelled), copy.copy(module)
    data.trainer, data._rows = None, {}  # not sent to other processes with `encode`

    def encode(columns: Mapping[str, Sequence[Any]], numbers: Sequence[int]) -> dict[str, list[Any]]:
        values = {name: named(columns[name], names if name == label else None) for name in kept}
        given = list(numbers) if ids is None else list(map(int, columns[ids]))
        if labelled and skipped:
            taken = [n for n, value in enumerate(values[label]) if str(value) not in skipped]
            values = {name: [column[n] for n in taken] for name, column in values.items()}
            numbers, given = [numbers[n] for n in taken], [given[n] for n in taken]
        if not numbers:
            return {name: [] for name in types}
        return data.encode(values, numbers, where) | {"example_id": given}

    cls = type(module)
    identity = [ROWS_VERSION, cls.__module__, cls.__qualname__, cls.encode.__code__, rows._fingerprint]
    facts = [module.max_length, module.layout, module.preset, kept, module.label_names, names, ids, str(types), skipped]
    # The library would hash `encode` with all that it refers to, which differs between processes.
    found: Dataset = rows.map(
        encode,
        batched=True,
        with_indices=True,
        remove_columns=rows.column_names,
        features=Features(types),
        num_proc=module.num_proc,
        new_fingerprint=Hasher.hash([*identity, *facts, fingerprint(module.tokenizer)]),
        desc=f"Tokenising {module.task_name}",
    )
    if len(found) == 0:
        raise DataError(f"{where} has no rows but those of skip_labels, {list(skipped)!r}: leave out fewer labels.")
    return found
