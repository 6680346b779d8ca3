"""The folder of a study, and the hashes that name its files."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel

from papa_lightning.checks import anything, listed, mapped, record, shown, text
from papa_lightning.datamodules.reading.files import content_hash
from papa_lightning.encoders import weights_fingerprint
from papa_lightning.errors import PapaError, ResultFileError, StudyError, similar_file
from papa_lightning.files.checked import read_json, write_json
from papa_lightning.files.locking import claimed, waiting
from papa_lightning.files.writing import check_work_folder, remove_left, temporary_folder
from papa_lightning.study.parts import StudyPart

_FORMAT = "papa_lightning.study/1"
#: Part of every hash: raise it when the same settings would give other numbers than before.
#: 2: encoders run over real tokens alone, and constants are filled where calibration saw few sequences or none.
STUDY_VERSION = 2
#: Kinds of files that study.json names, and the field that distinguishes the files of one pair.
NAMED = {"constants": "kind", "rankings": "criterion"}


#: Folders of what was given as objects or in checkpoints, which are written before the study begins.
OBJECTS = ("encoders", "data")
_PART_LOCK = ".lock-part-"
#: Seconds that a part waits for another one that looks whether the whole study is at work.
_PATIENCE = 10.0


class _Hashed(Protocol):
    @property
    def hash(self) -> str: ...


Result = TypeVar("Result", bound=_Hashed)


class StudyFolder:
    """The files of a study, each named by a hash of everything that it depends on, and written whole or not at all."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self._held = False

    @contextmanager
    def claimed(self, part: StudyPart | None = None) -> Iterator[None]:
        """Keep other processes from writing to the folder, or from the same part. Reading needs no claim."""
        if self._held:
            yield
            return
        whole = self.path / ".lock"
        lock = whole if part is None else self.path / f"{_PART_LOCK}{part.number}-of-{part.total}"
        with claimed("output", self.path, lock):
            # Whole and part look for each other when they hold their own: both may be refused, but never pass.
            for other in self.path.glob(f"{_PART_LOCK}*") if part is None else [whole]:
                with claimed("output", self.path, other, patience=_PATIENCE * (part is not None)):
                    pass
            self._held = True
            try:
                yield
            finally:
                self._held = False

    @contextmanager
    def turn(self, name: str) -> Iterator[None]:
        """Let one process at a time into a ``with`` block of this name; all of them where files cannot be locked."""
        with waiting(self.path / f".turn-{name}"):
            yield

    def constants(self, encoder: str, task: str, kind: str, key: str) -> Path:
        """Path of the constants of an encoder on a task."""
        return self.path / "constants" / f"{_readable(encoder, task, kind, key)}.safetensors"

    def ranking(self, encoder: str, task: str, criterion: str, key: str) -> Path:
        """Path of a ranking."""
        return self.path / "rankings" / f"{_readable(encoder, task, criterion, key)}.json"

    def encoder(self, name: str, key: str) -> Path:
        """Folder of an encoder that was given as an object or in a checkpoint."""
        return self.path / "encoders" / _readable(name, key)

    def rows(self, name: str, key: str) -> Path:
        """Folder of the tokenised rows of a data module that was given as an object."""
        return self.path / "data" / _readable(name, key)

    def cell(self, key: str) -> Path:
        """Path of the result of one probe."""
        return self.path / "cells" / f"{key}.json"

    def predictions(self, key: str) -> Path:
        """Path of the predictions of one probe, beside its result."""
        return self.path / "cells" / f"{key}.parquet"

    def result(self, key: str, load: Callable[[Path], Result]) -> Result:
        """The result of a probe, which `load` reads from the file of its hash."""
        found = load(path := self.cell(key))
        if found.hash != key:
            raise ResultFileError(
                f"result file {str(path)!r} is that of another result, {shown(found.hash)}: delete it and run again."
            )
        return found

    def features(self, key: str) -> Path:
        """Folder of the hidden states of one choice of heads."""
        return self.path / "features" / key[:16]

    @contextmanager
    def temporary_features(self) -> Iterator[Path]:
        """A temporary folder for hidden states that no other process uses."""
        with temporary_folder(self.path / "features") as place:
            yield place

    def clear(self, keep_features: bool) -> None:
        """Remove what a killed run left behind; the folder must be claimed."""
        features = list(self.path.glob("features/*"))
        if not keep_features:
            for path in features:
                shutil.rmtree(path, ignore_errors=True)
        for folder in (self.path, *self.path.iterdir(), *features):
            if folder.is_dir():
                remove_left(folder)

    def relative(self, path: Path) -> str:
        """A path relative to the folder, as ``study.json`` has it: the folder may move."""
        return path.relative_to(self.path).as_posix()

    def check(self) -> None:
        """Refuse a folder that cannot be written, or has files but no study."""
        check_work_folder("output", self.path)
        if self.path.is_dir() and any(path.name[0] != "." and path.name not in OBJECTS for path in self.path.iterdir()):
            self.read()  # a run that was killed at its start leaves only hidden files and what was given as objects

    def write(self, settings: Mapping[str, Any], about: Mapping[str, Any], files: Mapping[str, Any]) -> None:
        """Write ``study.json``: settings as plain values, facts about the measurement, and paths of files."""
        write_json(self.path / "study.json", _FORMAT, {"settings": settings, "about": about, "files": files})

    def read(self) -> dict[str, Any]:
        """The content of ``study.json``."""
        path = self.path / "study.json"
        if not self.path.is_dir():
            meant = similar_file(self.path) or "."
            raise StudyError(f"there is no study in {str(self.path)!r}, because there is no such folder{meant}")
        if not path.is_file():
            raise StudyError(
                f"{str(self.path)!r} is not the folder of a study: it has no study.json. Pass an empty folder to start "
                "a study, or one that `papa study` has written."
            )
        remedy = "delete it, and run the study again, or pass another folder"
        found: dict[str, Any] = read_json(path, _FORMAT, _CONTENT, StudyError, "study file", remedy)
        return found


#: Constants and rankings, each with its pair; the cells of the last run of a comparison of kinds.
_PLACES = {key: listed(record(dict.fromkeys(("encoder", "task", name, "path"), text))) for key, name in NAMED.items()}
_FILES = {**_PLACES, "cells": listed(text)}
_CONTENT = record({"settings": mapped(anything), "about": mapped(anything), "files": record(_FILES, may_lack=_FILES)})


def digest(content: object) -> str:
    """SHA-256 of plain values, as in JSON, in hexadecimal digits."""
    text = json.dumps([STUDY_VERSION, content], sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def with_contents(value: Any) -> Any:
    """Plain values in which paths of files and folders are replaced by hashes, as contents change and move."""
    if isinstance(value, dict):
        return {name: with_contents(held) for name, held in value.items()}
    if isinstance(value, (list, tuple)):
        return [with_contents(held) for held in value]
    if not isinstance(value, str):
        return value
    try:
        path = Path(value).expanduser()
        is_file, is_folder = path.is_file(), path.is_dir()
    except (OSError, ValueError, RuntimeError):  # too long, with a zero byte, home of an unknown user
        return value
    # The name of a folder stays: any word of the settings may also be the name of a folder.
    return content_hash(path) if is_file else [value, content_hash(path)] if is_folder else value


def rows_digest(rows: Dataset) -> str:
    """SHA-256 of the values of tokenised rows, whose columns are whole numbers of one shape each."""
    found = hashlib.sha256()
    names = sorted(rows.column_names)
    for batch in rows.with_format("numpy").iter(batch_size=4096):
        for name in names:
            values = np.ascontiguousarray(np.asarray(batch[name], dtype=np.int64))
            found.update(f"{name} {values.shape}".encode())
            found.update(values.data)
    return found.hexdigest()


def encoder_identity(encoder: PreTrainedModel) -> dict[str, Any]:
    """What the numbers of an encoder depend on: its weights and configuration, not its name or path."""
    config = json.loads(encoder.config.to_json_string(use_diff=True))
    for name in ("_name_or_path", "transformers_version", "architectures"):
        config.pop(name, None)
    weights = weights_fingerprint(encoder)
    if weights is None:
        raise PapaError("encoder has weights that are not in this process (sharded, or on meta): load it whole.")
    stored = encoder.state_dict().keys()  # buffers that are stored with the weights
    buffers = {
        name: hashlib.sha256(buffer.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data).hexdigest()
        for name, buffer in encoder.named_buffers()
        if name in stored and ".papa." not in name
    }
    return {"weights": weights, "buffers": buffers, "config": config}


def _readable(*parts: str) -> str:
    *names, key = parts
    return "--".join([*(name.replace(":", "_") for name in names), key[:16]])
