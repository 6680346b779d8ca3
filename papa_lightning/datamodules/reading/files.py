"""Rows of a task: from local files, one for each split, or from the hub, stored by the datasets library."""

import errno
import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, load_dataset
from datasets import config as datasets_config
from datasets.fingerprint import Hasher

from papa_lightning.datamodules.reading.formats import READERS, open_bytes, suffix_of, unreadable
from papa_lightning.errors import DataError, similar_file
from papa_lightning.files.checked import add_file

# Part of the identity of stored rows: raise it when a file is read in another way.
_VERSION = 1

PARQUET = "refs/convert/parquet"
"""Revision of the hub's own copy in Parquet. Many data sets have a loading script, which the datasets library no longer
runs."""

# Files of Universal Dependencies have names of their own: en_ewt-ud-dev.conllu.
_TREEBANK_NAMES = {"train": "-ud-train", "validation": "-ud-dev", "test": "-ud-test"}


def find_split_files(folder: Path, splits: Iterable[str], suffixes: Sequence[str] = tuple(READERS)) -> dict[str, Path]:
    """Path of the file of every split that has one, by its exact stem: `train.jsonl`, not `train_sentences.jsonl`."""
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise DataError(
            f"data_dir is {str(folder)!r}, which {found}: pass a folder that holds {file_names('train', suffixes)}"
            f"{similar_file(folder) or '.'}"
        )
    files: dict[str, Path] = {}
    for split in splits:
        files_here = sorted(path for path in folder.iterdir() if suffix_of(path) in suffixes)
        matches = [path for path in files_here if _is_of(path, split)]
        if len(matches) > 1:
            names = ", ".join(path.name for path in matches)
            raise DataError(f"data_dir {str(folder)!r} holds several files for the split {split!r}: {names}: keep one.")
        if matches:
            files[split] = matches[0]
    return files


def _is_of(path: Path, split: str) -> bool:
    """Whether a file is that of a split, also as a treebank names it."""
    stem, ending = Path(path.name.removesuffix(".gz")).stem, _TREEBANK_NAMES.get(split)
    return stem == split or (suffix_of(path) == ".conllu" and ending is not None and stem.endswith(ending))


def missing_split(folder: Path, split: str, suffixes: Sequence[str] = tuple(READERS)) -> DataError:
    """The error for a folder without a file for a split."""
    found = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
    return DataError(
        f"data_dir {str(folder)!r} has no file for the split {split!r}; it holds: {found}. "
        f"Name the file {file_names(split, suffixes)}."
    )


def file_names(split: str, suffixes: Sequence[str] = tuple(READERS)) -> str:
    """Possible names of the file of a split, for messages."""
    *others, last = [split + suffix for suffix in suffixes]
    return f"{', '.join(others)} or {last}"


def read_split(path: Path) -> Dataset:
    """Read the file of one split, memory-mapped; cells of tables are text, except whole numbers in `idx` and `id`."""
    check_not_empty(path)
    file_format = READERS[suffix_of(path)]
    try:
        if file_format.is_text:
            check_utf8(path)  # the readers do not locate broken characters
        types = file_format.types(path)
    except Exception as error:  # the libraries of the readers raise many classes
        raise _explained(path, error) from error
    return store_rows(path, lambda: file_format.rows(path, types), types)


def load_hub(path: str, config: str | None, revision: str | None, remedy: str) -> Mapping[str, Dataset]:
    """Load all splits of a data set of the hub, by name; after the first time, from the cache."""
    try:
        splits: Mapping[str, Dataset] = load_dataset(path, config, revision=revision)
    except Exception as error:  # network, hub and file readers raise many classes
        name = repr(path) if config is None else f"{path!r} ({config})"
        script = "" if revision == PARQUET else f" (of a data set with a script, take {PARQUET!r})"
        raise DataError(
            f"the data set {name} cannot be loaded from the hub: {first_line(error)}. Check the network and the "
            f"revision{script}, or {remedy}."
        ) from error
    return splits


def store_rows(path: Path, rows: Callable[[], Iterator[dict[str, Any]]], types: Features, *facts: object) -> Dataset:
    """Store the rows of a file in the cache of the datasets library, by its bytes and the facts that decide on rows."""
    content = content_hash(path)

    def stored() -> Iterator[dict[str, Any]]:
        empty = True
        for row in rows():
            yield row
            empty = False
        if empty:
            raise DataError(f"{str(path)!r} holds no rows: write at least one row into it, or remove it.")
        if content_hash(path) != content:
            raise DataError(f"{str(path)!r} was changed while it was read: wait until it is whole, and run again.")

    name = Hasher.hash([_VERSION, content, suffix_of(path), str(types), *facts])
    try:
        found: Dataset = Dataset.from_generator(stored, features=types, fingerprint=name)
    except Exception as error:  # the library wraps ours
        raise _explained(path, error) from error
    return found


def _explained(path: Path, error: BaseException) -> DataError:
    """The DataError that another error was raised from, or one that quotes the innermost error."""
    while not isinstance(error, DataError) and (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    if isinstance(error, DataError):
        return error
    if isinstance(error, OSError) and (error.errno == errno.ENOSPC or error.filename not in (None, str(path), path)):
        return DataError(
            f"the rows of {str(path)!r} cannot be stored in the cache {str(datasets_config.HF_DATASETS_CACHE)!r} "
            f"({first_line(error)}): make room there, or set HF_DATASETS_CACHE to a folder that you may write to."
        )
    return unreadable(path, first_line(error))


def first_line(error: BaseException) -> str:
    r"""First line of an error's message, without the full stop; its type if it has no message.

    Example:
        >>> first_line(OSError("No such file.\nMore words.")), first_line(OSError())
        ('No such file', 'OSError')
    """
    return str(error).strip().partition("\n")[0].rstrip(" .:") or type(error).__name__


def content_hash(path: str | Path) -> str:
    """Identity of a file by its bytes, or of a folder by names and bytes of its files: 64 hexadecimal digits."""
    start = Path(path).expanduser()
    found = hashlib.sha256()
    try:
        if not start.is_dir():
            add_file(found, start)
        else:
            for file in sorted(file for file in start.rglob("*") if file.is_file()):
                name, size = file.relative_to(start).as_posix(), file.stat().st_size
                found.update(f"{len(name)} {name} {size} ".encode("utf-8", "surrogateescape"))
                add_file(found, file)
    except OSError as error:
        raise DataError(f"{str(start)!r} cannot be read ({error.strerror}): pass a file or folder that can.") from error
    return found.hexdigest()


def check_not_empty(path: Path) -> None:
    """Refuse an empty file."""
    if path.stat().st_size == 0:
        raise DataError(f"{str(path)!r} is an empty file: write at least one row into it, or remove it.")


def check_utf8(path: Path) -> None:
    """Refuse a text file that is not in UTF-8."""
    try:
        with open_bytes(path) as lines:
            for number, line in enumerate(lines, start=1):  # noqa: B007 (for the message)
                line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{str(path)!r} is not in UTF-8: line {number}, byte {error.start + 1} ({error.reason}). "
            "Write the file again in UTF-8."
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise unreadable(path, first_line(error)) from error
