"""papa.json of an exported encoder: what it is, and which bytes belong to it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from papa_lightning.exceptions import ExportError

FORMAT = "papa_lightning.exported_encoder/1"
FACTS, CONFIG, WEIGHTS, GRAPH = "papa.json", "config.json", "model.safetensors", "model.onnx"

_BLOCK = 1 << 20


@dataclass(frozen=True)
class Facts:
    """The content of papa.json.

    Args:
        format: Of the folder.
        papa_lightning: Version that wrote it.
        encoder: Name of the class of the encoder.
        max_length: The longest sequence that its constants serve.
        kinds: What stands in each layer.
        num_heads: H.
        heads: The heads of each layer that are replaced.
        parameters: Numbers of entries: "whole" (of the encoder before), "left_out", "added" (constants and what else
            the kinds have), "saved".
        files: Name -> SHA-256, of the files that the encoder is read from.
    """

    format: str
    papa_lightning: str
    encoder: str
    max_length: int
    kinds: list[str]
    num_heads: int
    heads: list[list[int]]
    parameters: dict[str, int]
    files: dict[str, str]

    def as_bytes(self) -> bytes:
        """The file."""
        return (json.dumps(asdict(self), indent=1) + "\n").encode()


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            found.update(block)
    return found.hexdigest()


def read_facts(folder: Path) -> Facts:
    """Read papa.json, and check that the files beside it are those that it was written with.

    Raises:
        ExportError: When the folder is no exported encoder, or a file in it is not whole.
    """
    content = _read_json(folder)
    kinds = {"format": str, "papa_lightning": str, "encoder": str, "max_length": int, "kinds": list, "heads": list}
    kinds |= {"num_heads": int, "parameters": dict, "files": dict}
    if content.keys() != kinds.keys() or not all(isinstance(content[name], kinds[name]) for name in kinds):
        raise _damaged(folder, FACTS)
    facts = Facts(**content)
    for name in (CONFIG, WEIGHTS):
        try:
            found = digest(folder / name)
        except OSError as error:
            raise _damaged(folder, name) from error
        if found != facts.files.get(name):
            raise _damaged(folder, name)
    return facts


def is_export(folder: Path) -> bool:
    """Whether a folder was written by an export, whole or not."""
    try:
        _read_json(folder)
    except ExportError:
        return False
    return True


def _read_json(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / FACTS).read_bytes())
    except OSError as error:
        raise ExportError(
            f"{str(folder)!r} holds no exported encoder ({FACTS}: {error.strerror}): pass a folder that `papa export` "
            "or export_encoder wrote. Stock encoders are loaded with transformers."
        ) from error
    except (ValueError, RecursionError) as error:
        raise _damaged(folder, FACTS) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise ExportError(
            f"{str(folder / FACTS)!r} has format {found!r}, but must have {FORMAT!r}: pass a folder that this version "
            "of papa_lightning exported."
        )
    return content


def _damaged(folder: Path, name: str) -> ExportError:
    return ExportError(
        f"{str(folder / name)!r} is missing, damaged, or was changed after the export: export the encoder again."
    )
