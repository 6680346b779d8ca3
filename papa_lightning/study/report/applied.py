"""The measured size and speed of an encoder with the heads that a report proposes, as a file of the study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from papa_lightning.errors import ResultFileError
from papa_lightning.files.records import check_fields, read_record, write_record

#: The file, in the folder of a study.
FILE = "applied.json"
_FORMAT = "papa_lightning.applied/1"


@dataclass(frozen=True)
class Applied:
    """Size and speed of an encoder with some heads constant, beside those of the stock encoder.

    Args:
        encoder: Name of the encoder in the study.
        task: Name of the task.
        heads: Number of constant heads.
        ranking: Path of the ranking in the folder of the study.
        input: Sequences and tokens of a batch, "16x64".
        seconds: Median seconds of a batch.
        stock_seconds: Median seconds of the stock encoder.
        speed: Median speed relative to the stock encoder.
        speed_low: First quartile of the speed over the runs.
        speed_high: Third quartile.
        parameters: Numbers of parameters: of the "whole" encoder, those "left_out", and those "added" as constants.
        machine: Processor, device, threads and versions.
    """

    encoder: str
    task: str
    heads: int
    ranking: str
    input: str
    seconds: float
    stock_seconds: float
    speed: float
    speed_low: float
    speed_high: float
    parameters: Mapping[str, int]
    machine: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class _Measured:
    """The content of the file."""

    measured: Sequence[Applied]


def save_applied(folder: Path, found: Sequence[Applied]) -> None:
    """Write the measurements of a study."""
    write_record(folder / FILE, _FORMAT, _Measured(found))


def load_applied(folder: Path) -> Sequence[Applied]:
    """The measurements of a study; none without the file."""
    path, remedy = folder / FILE, "delete it, and make the report again"
    if not path.is_file():
        return []
    return read_record(path, _FORMAT, _Measured, ResultFileError, "file of measured speeds", remedy).measured
