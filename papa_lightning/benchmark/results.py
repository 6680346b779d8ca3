"""Results of a benchmark: measurements, how they were made, and the files that hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import pandas as pd

from papa_lightning.checks import filled, listed, number, whole
from papa_lightning.errors import ResultFileError
from papa_lightning.files.checked import read_json, write_json
from papa_lightning.files.records import check_fields, record_of
from papa_lightning.files.writing import write_atomically

_FORMAT = "papa_lightning.benchmark/1"

Text: TypeAlias = Annotated[str, filled]
Size: TypeAlias = Annotated[int, whole(1)]
Quantity: TypeAlias = Annotated[float, number(0)]


@dataclass(frozen=True)
class Measurement:
    """One variant of one encoder with one input.

    Args:
        encoder: Name of the encoder, or its type if its weights are random.
        hidden: Hidden size d.
        layers: Number of layers L.
        heads: Number of heads H of a layer.
        batch: Number of sequences B.
        length: Number of tokens T of a sequence, with padding.
        kind: Kind of attention.
        share: Share of constant heads; None for a kind without shares.
        backend: Backend of the dynamic attention.
        seconds: Median seconds of a batch.
        low: First quartile of the seconds.
        high: Third quartile of the seconds.
        sequences_per_second: Sequences a second at the median.
        tokens_per_second: Tokens a second at the median, without padding.
        peak_bytes: Largest memory of one pass beyond the model and the sums of a calibration; None where it cannot be
            measured.
        held_bytes: Size of the parameters and buffers that the kind adds to the encoder, and of a calibration's sums.
        speed: Median seconds of the stock encoder divided by those of this variant: of the fastest of its backends in
            the same mode (eager, compiled, CUDA graph) for the same work; packed batches are compared with padded ones.
        speed_low: First quartile of the quotients of runs in the same turn.
        speed_high: Third quartile of these quotients.
        bound: Largest speed that the arithmetic allows; None where it is not known.
        padding: Share of the tokens that is padding.
        work: "forward", or "training": forward and backward.
        section: Name of its section in the settings; empty without sections.

    Raises:
        PapaError: For a value of the wrong type or out of its range.
    """

    encoder: Text
    hidden: Size
    layers: Size
    heads: Size
    batch: Size
    length: Size
    kind: Text
    share: Annotated[float, number(0, 1)] | None
    backend: Text
    seconds: Quantity
    low: Quantity
    high: Quantity
    sequences_per_second: Quantity
    tokens_per_second: Quantity
    peak_bytes: int | None
    held_bytes: int
    speed: Quantity
    speed_low: Quantity
    speed_high: Quantity
    bound: Quantity | None
    padding: Annotated[float, number(0, 0.5)] = 0.0
    work: Text = "forward"
    section: str = ""

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def reached(self) -> float | None:
        """The speed as a share of the bound; None without one."""
        return None if self.bound is None else self.speed / self.bound


#: What rows lack in files that were written before there was another value.
_ALWAYS = {one.name: one.default for one in fields(Measurement) if one.default is not MISSING}


def _row(name: str, value: object) -> Measurement:
    """A measurement; files also have the derived share of the bound."""
    given: object = value
    if isinstance(value, Mapping):
        given = _ALWAYS | {key: one for key, one in value.items() if key != "reached"}
    found: Measurement = record_of(Measurement)(name, given)
    return found


@dataclass(frozen=True)
class StudyTime:
    """Time of one piece of a study.

    Args:
        piece: What was done: "calibration and ranking", or a choice of heads.
        seconds: Seconds from beginning to end.
        parts: Seconds by part, as a study names them: "encoder", "storing", "probes" and others.

    Raises:
        PapaError: For a value of the wrong type or out of its range.
    """

    piece: Text
    seconds: Quantity
    parts: Mapping[str, Quantity]

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class BenchmarkResult:
    """All measurements of one run.

    Args:
        rows: The measurements, in the order in which they were made.
        settings: Settings of the benchmark.
        about: Machine, versions, device, dtype, threads and seed.
        study: Times of the pieces of a study; empty without one.
    """

    rows: Annotated[Sequence[Measurement], listed(_row)]
    settings: Mapping[str, Any]
    about: Mapping[str, Any]
    study: Sequence[StudyTime] = ()

    def table(self) -> pd.DataFrame:
        """A row for each measurement, with "reached", the share of the bound."""
        columns = [one.name for one in fields(Measurement)]
        found = pd.DataFrame([asdict(row) for row in self.rows], columns=columns)
        return found.assign(reached=[row.reached for row in self.rows])

    def save(self, folder: str | Path) -> list[Path]:
        """Write ``results.json`` and ``results.csv`` to a folder, made when missing; returns their paths."""
        rows, path = [asdict(row) | {"reached": row.reached} for row in self.rows], Path(folder)
        study = [asdict(one) for one in self.study]
        content = {"about": dict(self.about), "settings": dict(self.settings), "rows": rows, "study": study}
        return [
            write_json(path / "results.json", _FORMAT, content),
            write_atomically(path / "results.csv", self.table().to_csv(index=False).encode()),
        ]

    @classmethod
    def load(cls, path: str | Path) -> BenchmarkResult:
        """Read ``results.json``; raises a ResultFileError for a missing or damaged file, or another one."""
        noun = "file with the results of a benchmark"
        remedy = "pass a results.json that `papa benchmark --output` wrote"
        loaded: BenchmarkResult = read_json(path, _FORMAT, _result, ResultFileError, noun, remedy)
        return loaded


def _result(name: str, value: object) -> BenchmarkResult:
    """A whole result; files that were written before there was a study have none."""
    given = {"study": [], **value} if isinstance(value, Mapping) else value
    found: BenchmarkResult = record_of(BenchmarkResult)(name, given)
    return found
