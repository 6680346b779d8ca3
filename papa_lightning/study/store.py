"""The folder of a study: where everything lies that a run leaves behind."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from papa_lightning.checks import anything, listed, mapped, record, shown, text
from papa_lightning.errors import ResultFileError, StudyError
from papa_lightning.files.checked import read_json, write_json
from papa_lightning.files.locking import claimed
from papa_lightning.files.writing import remove_left, temporary_folder

_FORMAT = "papa_lightning.study/1"
#: The files that study.json names, and what tells those of one pair apart.
NAMED = {"constants": "kind", "rankings": "criterion"}


class _Hashed(Protocol):
    @property
    def hash(self) -> str: ...


Result = TypeVar("Result", bound=_Hashed)


class StudyFolder:
    """The files of a study. Every one is named by a hash of what it depends on and written whole or not at all.

    ======================== ====================================================
    ``study.json``           settings, what was measured how, and where files are
    ``cells/``               one file a finished probe
    ``constants/``           averages, one a pair of encoder and task
    ``rankings/``            one a pair and criterion
    ``features/``            hidden states while their probes train
    ``results.parquet/csv``  the table
    ======================== ====================================================

    Args:
        path: The folder; made when the first file is written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self._held = False

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep other processes from the folder for a while. To look at what is finished, nobody needs it.

        Raises:
            PapaError: When another process works in it.
        """
        if self._held:
            yield
            return
        with claimed("output", self.path, self.path / ".lock"):
            self._held = True
            try:
                yield
            finally:
                self._held = False

    def constants(self, encoder: str, task: str, kind: str, key: str) -> Path:
        """Where the constants of an encoder and a task are."""
        return self.path / "constants" / f"{_readable(encoder, task, kind, key)}.safetensors"

    def ranking(self, encoder: str, task: str, criterion: str, key: str) -> Path:
        """Where a ranking is."""
        return self.path / "rankings" / f"{_readable(encoder, task, criterion, key)}.json"

    def cell(self, key: str) -> Path:
        """Where the result of one probe is."""
        return self.path / "cells" / f"{key}.json"

    def result(self, key: str, load: Callable[[Path], Result]) -> Result:
        """What a probe gave.

        Args:
            key: Hash of all that it depends on.
            load: Reads the file.

        Raises:
            ResultFileError: When the file is damaged, or is another one's under this name.
        """
        found = load(path := self.cell(key))
        if found.hash != key:
            raise ResultFileError(
                f"result file {str(path)!r} is that of another result, {shown(found.hash)}: delete it and run again."
            )
        return found

    def features(self, key: str) -> Path:
        """Where the hidden states of one choice of heads stay."""
        return self.path / "features" / key[:16]

    @contextmanager
    def temporary_features(self) -> Iterator[Path]:
        """A folder for hidden states that nobody else uses, for a while."""
        with temporary_folder(self.path / "features") as place:
            yield place

    def clear(self, keep_features: bool) -> None:
        """Remove what a killed run left behind. To be called while the folder is claimed.

        Args:
            keep_features: Leave the hidden states that are complete.
        """
        features = list(self.path.glob("features/*"))
        if not keep_features:
            for path in features:
                shutil.rmtree(path, ignore_errors=True)
        for folder in (self.path, *self.path.iterdir(), *features):
            if folder.is_dir():
                remove_left(folder)

    def relative(self, path: Path) -> str:
        """A path inside the folder, as it is noted in ``study.json``: the folder may move."""
        return path.relative_to(self.path).as_posix()

    def check(self) -> None:
        """Refuse a folder that cannot hold a study.

        Raises:
            StudyError: When it is a file, cannot be written, or has files but no study.
        """
        check_writable(self.path)
        if self.path.is_dir() and any(not path.name.startswith(".") for path in self.path.iterdir()):
            self.read()  # a run that was killed at its start leaves hidden files only

    def write(self, settings: Mapping[str, Any], about: Mapping[str, Any], files: Mapping[str, Any]) -> None:
        """Note what the study is.

        Args:
            settings: Plain values.
            about: How it is measured.
            files: Where constants and rankings are.
        """
        write_json(self.path / "study.json", _FORMAT, {"settings": settings, "about": about, "files": files})

    def read(self) -> dict[str, Any]:
        """What :meth:`write` noted.

        Raises:
            StudyError: When the folder holds no study.
        """
        path = self.path / "study.json"
        if not path.is_file():
            raise StudyError(
                f"{str(self.path)!r} is not the folder of a study: it has no study.json. Pass an empty folder to start "
                "a study, or one that `papa study` has written."
            )
        remedy = "delete it, and run the study again, or pass another folder"
        found: dict[str, Any] = read_json(path, _FORMAT, _CONTENT, StudyError, "study file", remedy)
        return found


#: Constants and rankings, each with the pair that it is of; of a study of kinds, the cells of its last run.
_PLACES = {key: listed(record(dict.fromkeys(("encoder", "task", name, "path"), text))) for key, name in NAMED.items()}
_FILES = {**_PLACES, "cells": listed(text)}
_CONTENT = record({"settings": mapped(anything), "about": mapped(anything), "files": record(_FILES, may_lack=_FILES)})


def check_writable(folder: Path) -> None:
    """Refuse a folder for output in which nothing can be written; it need not exist.

    Raises:
        StudyError: When it is a file, or cannot be written.
    """
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not existing.is_dir():
        raise StudyError(f"output is {str(folder)!r}, but {str(existing)!r} is a file: pass a folder.")
    if not os.access(existing, os.W_OK):
        raise StudyError(f"output is {str(folder)!r}, where nothing can be written: pass another folder.")


def _readable(*parts: str) -> str:
    *names, key = parts
    return "--".join([*(name.replace(":", "_") for name in names), key[:16]])
