"""Local files of a task: one file a split, read with the datasets library."""

import csv
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset

from papa_lightning.exceptions import DataError

# Suffix of a file: the reader of the datasets library and its options. Text must come as it is: pandas would turn
# the words "null" and "None" into missing values. Tab-separated task files (GLUE's) hold unpaired quotation marks.
READERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    ".jsonl": ("json", {}),
    ".csv": ("csv", {"keep_default_na": False}),
    ".tsv": ("csv", {"keep_default_na": False, "sep": "\t", "quoting": csv.QUOTE_NONE}),
    ".parquet": ("parquet", {}),
}

# Files of Universal Dependencies have names of their own: en_ewt-ud-dev.conllu.
_TREEBANK_NAMES = {"train": "-ud-train", "validation": "-ud-dev", "test": "-ud-test"}


def find_split_files(folder: Path, splits: Iterable[str], suffixes: Sequence[str] = tuple(READERS)) -> dict[str, Path]:
    """Find the file of every split by its exact stem: `train.jsonl`, but not `train_sentences.jsonl`.

    Args:
        folder: Folder that holds the files.
        splits: Names of the splits.
        suffixes: Suffixes that a file may have.

    Returns:
        Path of the file by name of the split; a split without a file is left out.

    Raises:
        DataError: The folder does not exist, or a split has several files.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "train.csv").write_text("sentence,label")
        >>> {split: path.name for split, path in find_split_files(folder, ["train", "validation"]).items()}
        {'train': 'train.csv'}
    """
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise DataError(
            f"data_dir is {str(folder)!r}, which {found}: pass a folder that holds {file_names('train', suffixes)}."
        )
    files: dict[str, Path] = {}
    for split in splits:
        files_here = sorted(path for path in folder.iterdir() if path.suffix in suffixes)
        matches = [path for path in files_here if path.stem == split or _is_treebank(path, split)]
        if len(matches) > 1:
            names = ", ".join(path.name for path in matches)
            raise DataError(f"data_dir {str(folder)!r} holds several files for the split {split!r}: {names}: keep one.")
        if matches:
            files[split] = matches[0]
    return files


def _is_treebank(path: Path, split: str) -> bool:
    """Tell whether a file is a split of a treebank under its own name."""
    return path.suffix == ".conllu" and split in _TREEBANK_NAMES and path.stem.endswith(_TREEBANK_NAMES[split])


def missing_split(folder: Path, split: str, suffixes: Sequence[str] = tuple(READERS)) -> DataError:
    """Describe that a folder has no file for a split, with what it holds instead.

    Args:
        folder: Folder that was searched.
        split: Name of the split.
        suffixes: Suffixes that its file may have.

    Returns:
        The error, to be raised.
    """
    found = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
    return DataError(
        f"data_dir {str(folder)!r} has no file for the split {split!r}; it holds: {found}. "
        f"Name the file {file_names(split, suffixes)}."
    )


def file_names(split: str, suffixes: Sequence[str] = tuple(READERS)) -> str:
    """List the file names that a split may have.

    Example:
        >>> file_names("train")
        'train.jsonl, train.csv, train.tsv or train.parquet'
    """
    *others, last = [split + suffix for suffix in suffixes]
    return f"{', '.join(others)} or {last}"


def read_split(path: Path) -> Dataset:
    """Read the file of one split; the rows stay on disk, memory-mapped.

    Args:
        path: A .jsonl, .csv, .tsv or .parquet file.

    Returns:
        The rows, without any check of their columns.

    Raises:
        DataError: The file is empty, cannot be read, or has no rows.
    """
    check_not_empty(path)
    if path.suffix != ".parquet":
        check_utf8(path)  # the readers let broken characters pass, or do not say where they are
    reader, options = READERS[path.suffix]
    try:
        rows = load_dataset(reader, data_files=str(path), split="train", **options)
    except Exception as error:  # each reader raises errors of its own libraries: pandas, pyarrow, json
        if "corresponds to no data" in str(error):  # what the datasets library says of a file without rows
            raise DataError(f"{str(path)!r} holds no rows: write at least one row into it, or remove it.") from error
        raise DataError(
            f"{str(path)!r} cannot be read as {path.suffix}: {_reason(path, error)}. Mend the file or write it again."
        ) from error
    return rows


def first_line(error: BaseException) -> str:
    r"""Return the first line of an error's message, without the full stop; its type if it has no message.

    Args:
        error: An error of another library, to be quoted in one of ours.

    Returns:
        One line.

    Example:
        >>> first_line(OSError("No such file.\nMore words.")), first_line(OSError())
        ('No such file', 'OSError')
    """
    return str(error).strip().partition("\n")[0].rstrip(" .:") or type(error).__name__


def _reason(path: Path, error: BaseException) -> str:
    """Say why a file is unreadable: the line if one can be found, else the innermost error's words."""
    if path.suffix == ".jsonl" and (line := _broken_line(path)):
        return line
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return first_line(error)


def content_hash(path: str | Path) -> str:
    """Identify a file by its bytes, or a folder by the names and bytes of all that is in it; times and places do not
    count.

    Args:
        path: A file or folder; `~` is the home folder.

    Returns:
        SHA-256, 64 hexadecimal digits.

    Raises:
        DataError: There is nothing at the path, or it cannot be read.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "a.csv").write_text("text"), (folder / "b.csv").write_text("text")
        >>> content_hash(folder / "a.csv") == content_hash(folder / "b.csv") != content_hash(folder)
        True
    """
    start = Path(path).expanduser()
    found = hashlib.sha256()
    try:
        if not start.is_dir():
            _add_bytes(found, start)
        else:
            for file in sorted(file for file in start.rglob("*") if file.is_file()):
                name, size = file.relative_to(start).as_posix(), file.stat().st_size
                found.update(f"{len(name)} {name} {size} ".encode("utf-8", "surrogateescape"))
                _add_bytes(found, file)
    except OSError as error:
        raise DataError(f"{str(start)!r} cannot be read ({error.strerror}): pass a file or folder that can.") from error
    return found.hexdigest()


def _add_bytes(found: Any, path: Path) -> None:
    """Feed a file to a hash in pieces."""
    with path.open("rb") as file:
        while piece := file.read(2**20):
            found.update(piece)


def check_not_empty(path: Path) -> None:
    """Refuse a file of no bytes.

    Args:
        path: The file.

    Raises:
        DataError: It is empty.
    """
    if path.stat().st_size == 0:
        raise DataError(f"{str(path)!r} is an empty file: write at least one row into it, or remove it.")


def check_utf8(path: Path) -> None:
    """Refuse a text file that is not in UTF-8.

    Args:
        path: The file.

    Raises:
        DataError: It holds other bytes; the message names the line.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{str(path)!r} is not in UTF-8: line {number}, byte {error.start + 1} ({error.reason}). "
                    "Write the file again in UTF-8."
                ) from error


def _broken_line(path: Path) -> str | None:
    """Describe the first line of a JSON Lines file in UTF-8 that is not a JSON object."""
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line) if line.strip() else {}
            except json.JSONDecodeError as error:
                return f"line {number} is not JSON ({error.msg}, character {error.colno})"
            if not isinstance(row, dict):
                return f"line {number} is not a JSON object"
    return None
