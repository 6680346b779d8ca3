"""Which folders an export may be written to."""

from __future__ import annotations

import os
from pathlib import Path

from papa_lightning.errors import ExportError
from papa_lightning.export.facts import is_export
from papa_lightning.files import writing as files


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
    path = Path(os.path.realpath(os.path.expanduser(folder)))
    try:
        files.check_folder(path.parent)
        taken = os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir()))
    except (OSError, ValueError) as error:
        raise ExportError(
            f"{name} is {str(folder)!r}, which cannot be written ({getattr(error, 'strerror', None) or error}): pass a "
            "folder in a place that you may write to."
        ) from error
    if taken and not (path.is_dir() and is_export(path)):
        raise ExportError(f"{name} is {str(folder)!r}, which exists and is no export: pass the name of a new folder.")
    if taken and not replace:
        raise ExportError(
            f"{name} is {str(folder)!r}, which holds an export already: pass the name of a new folder, or replace=True "
            "(--replace true)."
        )
    if taken:
        _check_exchange(name, path)
    return path


def _check_exchange(name: str, path: Path) -> None:
    """Refuse to replace a folder where that takes a moment without one."""
    try:
        files.check_exchange(path.parent)
    except OSError as error:
        raise ExportError(
            f"{name} is {str(path)!r}, on a file system that cannot exchange two folders ({error.strerror}), so that a "
            "stopped run could leave neither: remove the export that is there, or pass the name of a new folder."
        ) from error
