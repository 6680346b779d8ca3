"""Reading checkpoints of Lightning from files or addresses without running code in them."""

import os
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import fsspec
import torch

from papa_lightning.either_lightning import TorchCheckpointIO
from papa_lightning.errors import CheckpointError, similar_file

_OTHER = "pass another one, or start anew"
#: Types of the entries of a checkpoint that Lightning and the tasks read.
_SCHEMA = {"state_dict": Mapping, "hyper_parameters": Mapping, "pytorch-lightning_version": str}


def is_address(path: str | Path) -> bool:
    """Whether a path is an address with a protocol (``http://``, ``s3://``, ``hf://``, ``file://``)."""
    return "://" in str(path)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of Lightning, with tensors on the CPU, from a file or an address that fsspec knows."""
    content, wrong = read_weights(path), None
    if not isinstance(content, dict) or "state_dict" not in content:
        wrong = "it has no state_dict"
    elif kinds := [key for key, kind in _SCHEMA.items() if key in content and not isinstance(content[key], kind)]:
        wrong = f"its {kinds[0]} is a {type(content[kinds[0]]).__name__}"
    elif strange := [key for key in content["state_dict"] if not isinstance(key, str)]:
        wrong = f"{strange[0]!r} names a parameter"
    if wrong is not None:
        raise CheckpointError(f"ckpt_path is {str(path)!r}, which is no checkpoint: {wrong}: {_OTHER}.")
    return content  # type: ignore[no-any-return]


def read_weights(path: str | Path, map_location: Any = "cpu") -> Any:
    """Read a file or address of ``torch.save`` that holds tensors and plain values only."""
    with _open(path) as file:
        try:
            with zipfile.ZipFile(file) as archive:  # torch.load ignores the checksums of torch.save
                if (damaged := archive.testzip()) is not None:
                    raise zipfile.BadZipFile(f"{damaged} differs from its sum")
            file.seek(0)
            unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(file)
            file.seek(0)
            if not unsafe:
                return torch.load(file, map_location=map_location, weights_only=True)
        except Exception as error:  # torch and zipfile raise all kinds of errors on other files
            raise CheckpointError(
                f"ckpt_path is {str(path)!r}, which is damaged or no checkpoint ({_reason(error)}): {_OTHER}."
            ) from error
    raise CheckpointError(
        f"ckpt_path is {str(path)!r}, which holds more than tensors and plain values ({', '.join(unsafe[:3])}): to "
        "load it could run code, so it is not loaded. Where you trust who wrote it, open it in Python with "
        "torch.load(path, weights_only=False), take out what is neither, save the rest with torch.save, and pass that."
    )


class WeightsOnlyIO(TorchCheckpointIO):
    """Runs no code in checkpoints, as Lightning does for ``http://``; tells addresses with the same last part apart."""

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read a checkpoint, never running code; from an address a whole one, from a file any that Lightning writes."""
        if is_address(path):
            return read_checkpoint(path)
        content: dict[str, Any] = read_weights(path, map_location)
        return content


def _open(path: str | Path) -> IO[bytes]:
    try:
        return _fetch(str(path)) if is_address(path) else open(os.path.expanduser(path), "rb")
    except Exception as error:  # every file system of fsspec has errors of its own
        absent = isinstance(error, FileNotFoundError) and error.__cause__ is None
        found = "but there is no such file" if absent else f"which cannot be read ({_reason(error.__cause__ or error)})"
        raise CheckpointError(
            f"ckpt_path is {str(path)!r}, {found}: pass the path of a checkpoint{similar_file(path) or '.'}"
        ) from error


def _fetch(address: str) -> IO[bytes]:
    """Copy a remote file to disk: torch seeks, which not every server supports."""
    copy = tempfile.TemporaryFile()  # noqa: SIM115 (the caller closes it)
    try:
        with fsspec.open(address, "rb") as remote:
            shutil.copyfileobj(remote, copy)
        copy.seek(0)
    except BaseException:
        copy.close()
        raise
    return copy


def _reason(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())[:200]
