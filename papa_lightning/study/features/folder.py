"""The folder of stored features: vectors that are memory-mapped, an index, and a manifest that says what they are.

    vectors.npy         (R, width), float32 or float16
    index.safetensors   counts (N,), positions, labels
    manifest.json       format, reading, dtype, and the SHA-256 of the others

The folder is written under another name and renamed when it is complete, so what bears its name is whole.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from papa_lightning.checks import one_of, record, text, whole
from papa_lightning.errors import OutputError, PapaError
from papa_lightning.files.checked import file_sum, json_bytes, read_json
from papa_lightning.files.writing import staged_folder
from papa_lightning.study.features.encoding import SplitIndex
from papa_lightning.study.features.reading import READINGS, Reading, reading_from

Dtype = Literal["float32", "float16"]
"""In which vectors are stored."""

_FORMAT = "papa_lightning.features/1"
_VECTORS, _INDEX, _MANIFEST = "vectors.npy", "index.safetensors", "manifest.json"


class TableWriter:
    """Writes the vectors of sequences to their places in a file of known size.

    Args:
        file: The file; its header is written here.
        reading: What is read of a sequence.
        vectors: Their number R.
        dtype: In which they are stored.
    """

    def __init__(self, file: BinaryIO, reading: Reading, vectors: int, dtype: Dtype) -> None:
        self._file, self._each = file, reading.rows_per_place
        self._dtype = getattr(torch, dtype)
        self._row_bytes = reading.width * self._dtype.itemsize
        description = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (vectors, reading.width)}
        np.lib.format.write_array_header_1_0(file, description)
        self._header = file.tell()

    def write(self, vectors: Tensor, starts: Tensor, counts: Tensor) -> None:
        """Write the vectors of a batch.

        Args:
            vectors: (rows, width), sequence by sequence.
            starts: (B,), the number of places before every sequence.
            counts: (B,), the number of its places.

        Raises:
            PapaError: If a number is too large for the dtype.
        """
        stored = vectors.to(self._dtype)
        if self._dtype == torch.float16 and not bool(stored.isfinite().all()):
            raise PapaError(
                f"dtype is 'float16', but a hidden state is {float(vectors.abs().max()):.3g}, beyond its range of "
                '65504: pass dtype="float32".'
            )
        rows = torch.split(stored.cpu(), (counts * self._each).tolist())
        for start, row in zip(starts.tolist(), rows, strict=True):
            self._file.seek(self._header + start * self._each * self._row_bytes)
            self._file.write(row.numpy().data)


def table_bytes(reading: Reading, index: SplitIndex, dtype: Dtype) -> int:
    """The size of stored features, without headers.

    Args:
        reading: What is read of a sequence.
        index: What is read of every sequence.
        dtype: In which vectors are stored.

    Returns:
        Bytes of vectors and index.
    """
    vectors = len(index.positions) * reading.rows_per_place * reading.width * np.dtype(dtype).itemsize
    return vectors + sum(tensor.nbytes for tensor in index.tensors())


def check_room(needed: int, budget: int, folder: Path) -> None:
    """Refuse features for which there is no room.

    Args:
        needed: Their size in bytes.
        budget: The greatest size that is allowed.
        folder: Where they are to go; may not exist yet.

    Raises:
        PapaError: If they are larger than the budget or the free disk space.
    """
    remedies = 'pass dtype="float16" for half of it, take fewer examples, or store nothing and use LiveFeatures'
    if needed > budget:
        raise PapaError(
            f"budget_bytes is {budget} ({_gigabytes(budget)}), but the features take {needed} ({_gigabytes(needed)}): "
            f"pass a larger budget, {remedies}."
        )
    existing = next(parent for parent in folder.absolute().parents if parent.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise PapaError(
            f"folder is {str(folder)!r}, where {free} bytes are free ({_gigabytes(free)}), but the features take "
            f"{needed} ({_gigabytes(needed)}): choose a folder on another disk, {remedies}."
        )


def write_folder(
    folder: Path, reading: Reading, index: SplitIndex, dtype: Dtype, write: Callable[[TableWriter], None]
) -> None:
    """Write a folder of features, whole or not at all.

    Args:
        folder: The folder.
        reading: What is read of a sequence.
        index: What is read of every sequence.
        dtype: In which vectors are stored.
        write: Writes the vectors of all sequences.

    Raises:
        PapaError: If the disk refuses them.
    """
    try:
        with staged_folder(folder) as unfinished:
            with open(unfinished / _VECTORS, "wb") as file:
                write(TableWriter(file, reading, len(index.positions) * reading.rows_per_place, dtype))
            counts, positions, labels = (tensor.contiguous() for tensor in index.tensors())
            content = safetensors.torch.save({"counts": counts, "positions": positions, "labels": labels})
            (unfinished / _INDEX).write_bytes(content)
            sums = {name: file_sum(unfinished / name) for name in (_VECTORS, _INDEX)}
            manifest = {"reading": _described(reading), "dtype": dtype, "files": sums}
            (unfinished / _MANIFEST).write_bytes(json_bytes(_FORMAT, manifest))
    except OutputError:
        if not folder.exists():  # else another process was faster, and its work is as good
            raise


def read_folder(folder: Path) -> tuple[Reading, SplitIndex, Tensor]:
    """Read a folder of features; the vectors stay on the disk.

    Args:
        folder: The folder.

    Returns:
        What is read of a sequence, what is read of every sequence, and the vectors (R, width).

    Raises:
        PapaError: If it is missing, damaged, or holds something else.
    """
    if not folder.is_dir():
        raise PapaError(f"folder is {str(folder)!r}, which does not exist: make it with store_features.")
    remedy = "remove it, and store the features again"
    try:
        manifest = read_json(folder / _MANIFEST, _FORMAT, _CONTENT, PapaError, "manifest", remedy)
        for name, found in manifest["files"].items():
            if file_sum(folder / name) != found:
                raise ValueError(f"{name} is not what the manifest says")
        reading: Reading = manifest["reading"]
        index = SplitIndex(**safetensors.torch.load_file(folder / _INDEX))
        table = _mapped(folder / _VECTORS)
        _check_fit(reading, index, table, manifest["dtype"])
    except (OSError, ValueError, TypeError, safetensors.SafetensorError) as error:
        raise PapaError(
            f"folder is {str(folder)!r}, which is damaged or holds no features ({type(error).__name__}: {error}): "
            f"{remedy}."
        ) from error
    return reading, index, table


def _reading(name: str, value: object) -> Reading:
    sizes = dict.fromkeys(("levels", "max_length", "hidden_size"), whole(1))
    found = record({"name": one_of(*READINGS), **sizes})(name, value)
    return reading_from(**found)


_CONTENT = record(
    {
        "reading": _reading,
        "dtype": one_of("float32", "float16"),
        "files": record(dict.fromkeys((_VECTORS, _INDEX), text)),
    }
)


def _mapped(path: Path) -> Tensor:
    """A tensor that is read from the file where it is used; nobody may write to it."""
    with warnings.catch_warnings():
        # Mapped so that torch could write to it, it could not be larger than the memory of the machine.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.load(path, mmap_mode="r", allow_pickle=False))


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


def _described(reading: Reading) -> dict[str, Any]:
    sizes = {name: getattr(reading, name) for name in ("levels", "max_length", "hidden_size")}
    return {"name": reading.name, **sizes}


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.3g} GB"
