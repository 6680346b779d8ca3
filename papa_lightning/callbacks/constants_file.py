"""The file that a run leaves its constants in."""

from __future__ import annotations

from pathlib import Path

from papa_lightning.files import check_output


def new_constants_file(folder: Path, encoder: str | None) -> str:
    """A file that does not exist yet, and can be written.

    Args:
        folder: Of the run; made when missing.
        encoder: Attribute of the encoder, where it was named.

    Returns:
        ``constants.safetensors``, ``constants.bert.safetensors`` for an encoder that was named, and the next of
        ``constants-1.safetensors``, ``constants-2.safetensors`` where an earlier run left such a file.

    Raises:
        PapaError: When the folder cannot be written to.
    """
    stem = "constants" if encoder is None else f"constants.{encoder}"
    path, number = folder / f"{stem}.safetensors", 0
    while path.exists():
        number += 1
        path = folder / f"{stem}-{number}.safetensors"
    check_output("the constants file of this run", path)
    return str(path)
