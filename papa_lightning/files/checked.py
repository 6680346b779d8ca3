"""JSON files with a sum of what is in them: what was damaged since it was written is refused.

A file without a sum was written by hand or by another program. It is read, with all other checks.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from papa_lightning.checks import LARGEST, Check, shown
from papa_lightning.errors import PapaError
from papa_lightning.files.writing import write_atomically

#: Name of the field that holds the sum.
SUM = "sha256"


def content_sum(content: object, tensors: Mapping[str, Tensor] | None = None) -> str:
    """SHA-256, in hexadecimal, of plain values and of tensors, which are contiguous and on the CPU.

    The order of names does not matter. A number that is not finite, and text that cannot be UTF-8, is a ValueError.

    Example:
        >>> content_sum({"a": 1, "b": 2.0}) == content_sum({"b": 2.0, "a": 1})
        True
    """
    found = hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False, ensure_ascii=False).encode())
    for name, tensor in sorted((tensors or {}).items()):
        found.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        found.update(tensor_bytes(tensor))
    return found.hexdigest()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, where they are."""
    return tensor.flatten().view(torch.uint8).numpy().data


def file_sum(path: Path) -> str:
    """SHA-256 of the bytes of a file, as 64 hexadecimal digits."""
    found = hashlib.sha256()
    add_file(found, path)
    return found.hexdigest()


def add_file(found: Any, path: Path) -> None:
    """Add the bytes of a file to a hash."""
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)


def parse_json(text: str | bytes) -> Any:
    """Read JSON as the standard has it: no name twice, and no number that is not finite or beyond 64 bits.

    Anything else, and lists in lists without end, is a ValueError.
    """
    try:
        return json.loads(
            text, parse_constant=_no_number, parse_float=_float, parse_int=_int, object_pairs_hook=_without_repeats
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def write_json(path: str | Path, form: str, content: Mapping[str, Any]) -> Path:
    """Write a JSON file with a format and a sum, whole or not at all."""
    return write_atomically(path, json_bytes(form, content))


def json_bytes(form: str, content: Mapping[str, Any]) -> bytes:
    """What :func:`write_json` writes."""
    plain = json.loads(json.dumps({"format": form, **content}, allow_nan=False))  # names are text from now on
    return json.dumps({**plain, SUM: content_sum(plain)}, indent=1).encode()


def read_json(path: str | Path, form: str, check: Check, error: type[PapaError], noun: str, remedy: str) -> Any:
    """Read a JSON file that :func:`write_json` wrote, or that is written like one; the check gets its fields.

    `noun` and `remedy` are the words of the message of `error`: the file is missing, damaged or of another form.
    """
    name = repr(str(path))
    try:
        content = parse_json(Path(path).expanduser().read_bytes())
    except OSError as found:
        raise error(f"{noun} {name} cannot be read ({found.strerror}): {remedy}.") from found
    except ValueError as found:
        raise error(f"{noun} {name} is not JSON ({found}): {remedy}.") from found
    if not isinstance(content, dict) or content.get("format") != form:
        other = shown(content.get("format")) if isinstance(content, dict) else f"of a {type(content).__name__}"
        raise error(f"{name} is not a {noun} (its format is {other}, expected {form!r}): {remedy}.")
    try:
        if SUM in content and content.pop(SUM) != content_sum(content):
            raise ValueError(f"its {SUM} is not that of its content; if it was changed on purpose, take {SUM} out")
        del content["format"]
        return check("it", content)
    except (ValueError, RecursionError) as found:
        raise error(f"{noun} {name} is damaged ({found}): {remedy}.") from found


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")


def _float(text: str) -> float:
    return found if math.isfinite(found := float(text)) else _no_number(text[:20])


def _int(text: str) -> int:
    return found if len(text) <= 20 and abs(found := int(text)) <= LARGEST else _no_number(f"{text[:20]}…")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"it has {shown(twice)} twice")
    return found
