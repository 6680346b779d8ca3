"""papa.json of an exported encoder: a description, and the sums of the files beside it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from papa_lightning.checks import filled, listed, maybe, record, text, whole
from papa_lightning.encoders import SupportedEncoder
from papa_lightning.errors import ExportError
from papa_lightning.export.build import count_parameters
from papa_lightning.files.checked import file_sum, json_bytes, parse_json, read_json

FORMAT = "papa_lightning.exported_encoder/1"
FACTS, CONFIG, WEIGHTS, GRAPH = "papa.json", "config.json", "model.safetensors", "model.onnx"


@dataclass(frozen=True)
class Facts:
    """The content of papa.json: for each layer its kind and constant heads, for each file beside it the SHA-256.

    The first position id is None where there is no model.onnx that takes position_ids.
    """

    papa_lightning: str
    encoder: str
    max_length: int
    kinds: list[str]
    num_heads: int
    heads: list[list[int]]
    parameters: dict[str, int]
    files: dict[str, str]
    first_position_id: int | None = None

    def as_bytes(self) -> bytes:
        """The content of the file."""
        return json_bytes(FORMAT, asdict(self))


def facts_of(found: SupportedEncoder, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The facts that can be read off a swapped encoder and the tensors that are saved."""
    mixers = found.mixers
    return {
        "heads": [list(mixer.constant_heads) for mixer in mixers],
        "kinds": [mixer.kind for mixer in mixers],
        "max_length": mixers[0].max_length,
        "num_heads": mixers[0].heads.num_heads,
        "parameters": count_parameters(found.model, state),
    }


def read_facts(folder: Path) -> Facts:
    """Read papa.json, and check that the files beside it are those that it was written with."""
    remedy = "pass a folder that `papa export` or export_encoder of this version wrote, or export the encoder again"
    content = read_json(folder / FACTS, FORMAT, _CONTENT, ExportError, "manifest of an exported encoder", remedy)
    facts = Facts(**content)
    for name in (CONFIG, WEIGHTS):
        try:
            found = file_sum(folder / name)
        except OSError as error:
            raise _damaged(folder, name) from error
        if found != facts.files[name]:
            raise _damaged(folder, name)
    return facts


def is_export(folder: Path) -> bool:
    """Whether a folder was written by an export, complete or not."""
    try:
        content = parse_json((folder / FACTS).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT


def _damaged(folder: Path, name: str) -> ExportError:
    return ExportError(
        f"{str(folder / name)!r} is missing, damaged, or was changed after the export: export the encoder again."
    )


_CONTENT = record(
    {
        "papa_lightning": text,
        "encoder": filled,
        "max_length": whole(1),
        "kinds": listed(filled),
        "num_heads": whole(1),
        "heads": listed(listed(whole())),
        "parameters": record(dict.fromkeys(("whole", "left_out", "added", "saved"), whole())),
        "files": record(dict.fromkeys((CONFIG, WEIGHTS), text)),
        "first_position_id": maybe(whole()),
    },
    may_lack=("first_position_id",),
)
