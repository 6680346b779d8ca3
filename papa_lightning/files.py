"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from papa_lightning.exceptions import PapaError


def write_atomically(path: str | Path, content: bytes) -> Path:
    """Write a file so that a reader, also after a crash, sees the old content or the new, never a part.

    Args:
        path: The file; its folder is made when missing.
        content: All of it.

    Returns:
        The path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes private files; results are as readable as any other file of the user.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def check_output(name: str, path: str | Path) -> None:
    """Refuse an output that could not be written, before the work that it is for.

    Args:
        name: Of the argument, for the message.
        path: The file to come; its folder is made when missing.

    Raises:
        PapaError: When it is a folder, or its folder cannot be made or written to.
    """
    try:
        if Path(path).is_dir():
            raise IsADirectoryError(None, "it is a folder")
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        # As long a name as the file has while it is written.
        with tempfile.NamedTemporaryFile(dir=Path(path).parent, prefix=f".{Path(path).name}."):
            pass
    except OSError as error:
        raise PapaError(
            f"{name} is {str(path)!r}, which cannot be written ({error.strerror}): pass a file in a folder that you "
            "may write to."
        ) from error
