"""The folder of stored features, which gets its name when it is complete.

vectors.npy (R, width), index.safetensors (counts (N,), positions, labels), manifest.json (with their SHA-256, if kept).
"""

import os
import shutil
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from papa_lightning.checks import one_of, record, text, whole
from papa_lightning.errors import OutputError, PapaError
from papa_lightning.files.checked import file_sum
from papa_lightning.files.records import read_record, write_record
from papa_lightning.files.writing import staged_folder
from papa_lightning.study.features.reading import READINGS, Reading
from papa_lightning.study.features.rows import SplitIndex

Dtype = Literal["float32", "float16"]
"""Dtypes of stored vectors."""

_FORMAT = "papa_lightning.features/1"
_VECTORS, _INDEX, _MANIFEST = "vectors.npy", "index.safetensors", "manifest.json"
_SUMS = dict.fromkeys((_VECTORS, _INDEX), text)


@dataclass(frozen=True)
class _Described:
    """A reading in a file."""

    name: Annotated[str, one_of(*READINGS)]
    levels: Annotated[int, whole(1)]
    max_length: Annotated[int, whole(1)]
    hidden_size: Annotated[int, whole(1)]


@dataclass(frozen=True)
class _Manifest:
    """The manifest."""

    reading: _Described
    dtype: Dtype
    files: Annotated[Mapping[str, str], record(_SUMS, may_lack=_SUMS)]


def table_bytes(reading: Reading, index: SplitIndex, dtype: Dtype) -> int:
    """Bytes of the vectors and the index of stored features, without headers."""
    vectors = len(index.positions) * reading.rows_per_place * reading.width * np.dtype(dtype).itemsize
    return vectors + sum(tensor.nbytes for tensor in index.tensors())


def check_room(needed: int, budget: int, folder: Path) -> None:
    """Refuse features that are larger than the budget or the free disk space; the folder need not exist."""
    remedies = (
        "pass features.storage float16 for half of it, take fewer examples, or pass features.storage none to compute "
        "hidden states in every epoch anew"
    )
    if needed > budget:
        raise PapaError(
            f"features.budget_gigabytes leaves {budget} bytes ({_gigabytes(budget)}) for the hidden states of these "
            f"examples, which take {needed} ({_gigabytes(needed)}): pass a larger budget, {remedies}."
        )
    existing = next(parent for parent in folder.absolute().parents if parent.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise PapaError(
            f"folder is {str(folder)!r}, where {free} bytes are free ({_gigabytes(free)}), but the hidden states take "
            f"{needed} ({_gigabytes(needed)}): choose a folder on another disk, {remedies}."
        )


def rounded(vectors: Tensor, dtype: Dtype) -> Tensor:
    """Vectors in a dtype, whose range they must be in."""
    found = vectors.to(getattr(torch, dtype))
    if found.dtype != vectors.dtype and not bool(found.isfinite().all()):
        raise PapaError(
            f"features.storage is {dtype!r}, but a hidden state is {float(vectors.abs().max()):.3g}, beyond its range "
            "of 65504: pass features.storage float32."
        )
    return found


def write_folder(
    folder: Path,
    reading: Reading,
    index: SplitIndex,
    dtype: Dtype,
    batches: Iterable[tuple[Tensor, Tensor]],
    kept: bool,
) -> dict[str, str]:
    """Write a folder of features, whole or not at all, from rows (r,) of the table and their vectors (r, width).

    Returns the sums of its files; none when another process has written the folder at the same time, or it is not to be
    kept for later runs.
    """
    shape = (len(index.positions) * reading.rows_per_place, reading.width)
    try:
        with staged_folder(folder, durable=kept) as unfinished:
            vectors_file = unfinished / _VECTORS
            first = np.lib.format.open_memmap(vectors_file, mode="w+", dtype=np.dtype(dtype), shape=shape).offset
            with vectors_file.open("r+b") as file:
                if hasattr(os, "posix_fallocate"):  # a full disk ends the run before the encoder has worked
                    os.posix_fallocate(file.fileno(), 0, vectors_file.stat().st_size)
                for rows, vectors in batches:
                    _write_rows(file, first, rows, rounded(vectors, dtype).cpu())
            counts, positions, labels = (tensor.contiguous() for tensor in index.tensors())
            content = safetensors.torch.save({"counts": counts, "positions": positions, "labels": labels})
            (unfinished / _INDEX).write_bytes(content)
            sums = {name: file_sum(unfinished / name) for name in (_VECTORS, _INDEX) if kept}
            described = _Described(reading.name, reading.levels, reading.max_length, reading.hidden_size)
            write_record(unfinished / _MANIFEST, _FORMAT, _Manifest(described, dtype, sums))
    except OutputError:
        if not folder.exists():  # else another process was faster, and its files are as good
            raise
        return {}
    return sums


def _write_rows(file: BinaryIO, first: int, rows: Tensor, stored: Tensor) -> None:
    """Write rows (r,) of a table whose first one is at a place of its file; a memory map takes four times as long."""
    ends = (rows.diff() != 1).nonzero().flatten() + 1
    for numbers, values in zip(rows.tensor_split(ends), stored.tensor_split(ends), strict=True):
        if len(numbers) > 0:
            file.seek(first + int(numbers[0]) * values[0].nbytes)
            file.write(values.contiguous().numpy().data)


def read_folder(folder: Path, sums: Mapping[str, str]) -> tuple[Reading, SplitIndex, Tensor]:
    """Read a folder of features: reading, index, and vectors (R, width), which stay on the disk; `sums` are known."""
    if not folder.is_dir():
        raise PapaError(f"folder is {str(folder)!r}, which does not exist: make it with store_features.")
    remedy = "remove it, and store the features again"
    try:
        manifest = read_record(folder / _MANIFEST, _FORMAT, _Manifest, PapaError, "manifest", remedy)
        for name, found in manifest.files.items():
            if (sums.get(name) or file_sum(folder / name)) != found:
                raise ValueError(f"{name} has another SHA-256 than the manifest says")
        described = manifest.reading
        sizes = (described.levels, described.max_length, described.hidden_size)
        reading = READINGS[described.name](*sizes)
        index = SplitIndex(**safetensors.torch.load_file(folder / _INDEX))
        table = _mapped(folder / _VECTORS)
        _check_fit(reading, index, table, manifest.dtype)
    except (OSError, ValueError, TypeError, safetensors.SafetensorError) as error:
        raise PapaError(
            f"folder is {str(folder)!r}, which is damaged or holds no features ({type(error).__name__}: {error}): "
            f"{remedy}."
        ) from error
    return reading, index, table


def _mapped(path: Path) -> Tensor:
    """A tensor whose values are read from the file when they are used; it must not be written to."""
    with warnings.catch_warnings():
        # A writable mapping could not be larger than the memory of the machine.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.lib.format.open_memmap(path, mode="r"))


def _check_fit(reading: Reading, index: SplitIndex, table: Tensor, dtype: str) -> None:
    dtypes = [tensor.dtype for tensor in index.tensors()]
    if dtypes != [torch.int64, torch.int32, torch.int64] or any(tensor.dim() != 1 for tensor in index.tensors()):
        raise ValueError(f"the index has the dtypes {dtypes}")
    places = int(index.counts.sum())
    shape = (places * reading.rows_per_place, reading.width)
    if tuple(table.shape) != shape or table.dtype != getattr(torch, dtype):
        raise ValueError(f"vectors are {tuple(table.shape)} {table.dtype}, expected {shape} {dtype}")
    labels = places if reading.per_token else len(index.counts)
    if (len(index.positions), len(index.labels)) != (places, labels) or bool((index.counts < 0).any()):
        raise ValueError(f"the index has {len(index.positions)} positions and {len(index.labels)} labels")
    if bool(((index.positions < 0) | (index.positions >= reading.max_length)).any()):
        raise ValueError(f"a position is not below max_length {reading.max_length}")


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.3g} GB"
