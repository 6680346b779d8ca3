"""Hashes: what a stored result depends on, so that a changed setting never finds an old one."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel

from papa_lightning.encoders import weights_fingerprint

#: Part of every hash: raise it when the same settings would give other numbers than before.
STUDY_VERSION = 1


def digest(content: object) -> str:
    """SHA-256 of plain values.

    Args:
        content: Primitives, lists and maps, as JSON has them.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> digest({"a": 1, "b": 2.0}) == digest({"b": 2.0, "a": 1})
        True
    """
    text = json.dumps([STUDY_VERSION, content], sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def with_contents(value: Any) -> Any:
    """Plain values in which the path of a file is replaced by what is in it: the same name may hold other data later.

    Args:
        value: Primitives, lists and maps. Folders and everything else stay as they are.

    Example:
        >>> with_contents({"files": ["no such file"], "unit": "bytes"})
        {'files': ['no such file'], 'unit': 'bytes'}
    """
    if isinstance(value, dict):
        return {name: with_contents(held) for name, held in value.items()}
    if isinstance(value, (list, tuple)):
        return [with_contents(held) for held in value]
    if isinstance(value, str) and Path(value).is_file():
        path = Path(value)
        return _contents(str(path.absolute()), path.stat().st_mtime_ns, path.stat().st_size)
    return value


@cache
def _contents(path: str, modified: int, size: int) -> str:
    """SHA-256 of a file; time and size are there for the cache alone."""
    found = hashlib.sha256()
    with Path(path).open("rb") as file:
        while piece := file.read(2**20):
            found.update(piece)
    return found.hexdigest()


def rows_digest(rows: Dataset) -> str:
    """SHA-256 of tokenised rows: their values, wherever they are stored.

    Args:
        rows: Columns of whole numbers, each of one shape.

    Returns:
        64 hexadecimal digits.
    """
    found = hashlib.sha256()
    names = sorted(rows.column_names)
    for batch in rows.with_format("numpy").iter(batch_size=4096):
        for name in names:
            values = np.ascontiguousarray(np.asarray(batch[name], dtype=np.int64))
            found.update(f"{name} {values.shape}".encode())
            found.update(values.data)
    return found.hexdigest()


def encoder_identity(encoder: PreTrainedModel) -> dict[str, Any]:
    """What the numbers of an encoder depend on: its weights and its configuration, not its name or place."""
    config = json.loads(encoder.config.to_json_string(use_diff=True))
    for name in ("_name_or_path", "transformers_version", "architectures"):
        config.pop(name, None)
    return {"weights": weights_fingerprint(encoder), "config": config}
