"""Hashes: what a stored result depends on, so that a changed setting never finds an old one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel

from papa_lightning.datamodules.reading.files import content_hash
from papa_lightning.encoders import weights_fingerprint
from papa_lightning.errors import PapaError

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
    """Plain values in which the path of a file or folder is replaced by what is in it.

    The same name may hold other data later, and a file may move.

    Args:
        value: Primitives, lists and maps.

    Example:
        >>> with_contents({"files": ["no such file"], "unit": "bytes"})
        {'files': ['no such file'], 'unit': 'bytes'}
    """
    if isinstance(value, dict):
        return {name: with_contents(held) for name, held in value.items()}
    if isinstance(value, (list, tuple)):
        return [with_contents(held) for held in value]
    if not isinstance(value, str):
        return value
    try:
        path = Path(value).expanduser()
        is_file, is_folder = path.is_file(), path.is_dir()
    except (OSError, ValueError, RuntimeError):  # too long, with a zero byte, of an unknown user
        return value
    # Beside a folder its name: any word of the settings may be the name of a folder too.
    return content_hash(path) if is_file else [value, content_hash(path)] if is_folder else value


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
    weights = weights_fingerprint(encoder)
    if weights is None:
        raise PapaError("encoder has weights that this process does not hold (sharded, or on meta): load it whole.")
    return {"weights": weights, "buffers": _buffers(encoder), "config": config}


def _buffers(encoder: PreTrainedModel) -> dict[str, str]:
    """Hashes of what is stored with the weights and is none."""
    stored = encoder.state_dict().keys()
    return {
        name: hashlib.sha256(buffer.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data).hexdigest()
        for name, buffer in encoder.named_buffers()
        if name in stored and ".papa." not in name
    }
