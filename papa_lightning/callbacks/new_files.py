"""The files that a run leaves in its folder, under names that nothing has yet."""

from __future__ import annotations

from pathlib import Path

from papa_lightning.files.writing import check_output


def new_file(folder: Path, name: str, encoder: str | None) -> str:
    """A file that does not exist yet, and can be written.

    Args:
        folder: Of the run; made when missing.
        name: Of the file, e.g. "constants.safetensors".
        encoder: Attribute of the encoder that it is of, where it was named.

    Returns:
        ``constants.safetensors``, ``constants.bert.safetensors`` for an encoder that was named, and the next of
        ``constants-1.safetensors``, ``constants-2.safetensors`` where an earlier run left such a file.

    Raises:
        PapaError: When the folder cannot be written to.
    """
    given = Path(name)
    stem = given.stem if encoder is None else f"{given.stem}.{encoder}"
    path, number = folder / f"{stem}{given.suffix}", 0
    while path.exists():
        number += 1
        path = folder / f"{stem}-{number}{given.suffix}"
    check_output(f"the {given.stem} file of this run", path)
    return str(path)
