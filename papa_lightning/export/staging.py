"""Folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from papa_lightning.exceptions import ExportError
from papa_lightning.export.facts import is_export


def check_folder(name: str, folder: str | Path, replace: bool) -> Path:
    """Refuse a folder that cannot be made, before the work that it is for.

    Args:
        name: Of the argument, for messages.
        folder: To be made.
        replace: Whether an earlier export may be replaced.

    Returns:
        Its path, without links.

    Raises:
        ExportError: When it is taken, or cannot be written.
    """
    path = Path(os.path.realpath(folder))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
        taken = path.exists() and not (path.is_dir() and not any(path.iterdir()))
    except OSError as error:
        raise ExportError(
            f"{name} is {str(folder)!r}, which cannot be written ({error.strerror}): pass a folder in a place that you "
            "may write to."
        ) from error
    if taken and not (path.is_dir() and is_export(path)):
        raise ExportError(f"{name} is {str(folder)!r}, which exists and is no export: pass the name of a new folder.")
    if taken and not replace:
        raise ExportError(
            f"{name} is {str(folder)!r}, which holds an export already: pass the name of a new folder, or replace=True "
            "(--replace true)."
        )
    return path


@contextmanager
def staged_folder(target: Path, replace: bool) -> Iterator[Path]:
    """A folder beside the target that takes its name at the end, and is removed after an error.

    A killed process leaves it, under a name that begins with a dot; nothing ever reads it.

    Args:
        target: What :func:`check_folder` returned.
        replace: The same as there.
    """
    staged = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        yield staged
        _settle(staged)
        check_folder("output_dir", target, replace)  # somebody may have been faster
        _move(staged, target)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _settle(folder: Path) -> None:
    """All of it on the disk, and readable as other files of the user: mkdtemp makes private folders."""
    umask = os.umask(0)
    os.umask(umask)
    for path in [*folder.rglob("*"), folder]:
        os.chmod(path, (0o777 if path.is_dir() else 0o666) & ~umask)
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _move(staged: Path, target: Path) -> None:
    if not (target.exists() and any(target.iterdir())):
        os.rename(staged, target)  # over an empty folder too
        return
    aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    os.rename(target, aside)
    try:
        os.rename(staged, target)
    except BaseException:
        os.rename(aside, target)
        raise
    shutil.rmtree(aside, ignore_errors=True)
