"""What came out of a benchmark: rows, how they were measured, and the files that they are kept in."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from papa_lightning.benchmark.settings import BenchmarkSettings
from papa_lightning.checks import Check, anything, filled, listed, mapped, maybe, number, record, whole
from papa_lightning.errors import ResultFileError
from papa_lightning.files.checked import read_json, write_json
from papa_lightning.files.writing import write_atomically
from papa_lightning.runtime import versions

_FORMAT = "papa_lightning.benchmark/1"


@dataclass(frozen=True)
class Measurement:
    """One variant of one encoder with one input.

    Args:
        encoder: Its name, or its type where its weights are random.
        hidden: d.
        layers: L.
        heads: H.
        batch: B, sequences.
        length: T, tokens with padding.
        kind: Of attention.
        share: Of its constant heads; None where the kind has no shares.
        backend: Of the dynamic attention.
        seconds: Median of a batch.
        low: First quartile of the seconds.
        high: Third quartile.
        sequences_per_second: At the median.
        tokens_per_second: At the median; padding does not count.
        peak_bytes: High-water mark of one pass above the model; None where it cannot be counted.
        held_bytes: Of the parameters and buffers that the kind adds to the encoder.
        speed: Median of the stock encoder under sdpa by this one's.
        speed_low: First quartile of the quotients of runs that were made in the same turn.
        speed_high: Third quartile.
        bound: The largest speed that the arithmetic allows; None where it is not known.
    """

    encoder: str
    hidden: int
    layers: int
    heads: int
    batch: int
    length: int
    kind: str
    share: float | None
    backend: str
    seconds: float
    low: float
    high: float
    sequences_per_second: float
    tokens_per_second: float
    peak_bytes: int | None
    held_bytes: int
    speed: float
    speed_low: float
    speed_high: float
    bound: float | None

    @property
    def reached(self) -> float | None:
        """Share of the bound."""
        return None if self.bound is None else self.speed / self.bound


@dataclass(frozen=True)
class BenchmarkResult:
    """All measurements of one run.

    Args:
        rows: In the order in which they were made.
        settings: What was asked.
        about: The machine, versions, device, dtype, threads, seed.
    """

    rows: Sequence[Measurement]
    settings: Mapping[str, Any]
    about: Mapping[str, Any]

    def table(self) -> pd.DataFrame:
        """One row a measurement, with "reached", the share of the bound."""
        columns = [one.name for one in fields(Measurement)]
        found = pd.DataFrame([asdict(row) for row in self.rows], columns=columns)
        return found.assign(reached=[row.reached for row in self.rows])

    def save(self, folder: str | Path) -> list[Path]:
        """Write ``results.json`` and ``results.csv``.

        Args:
            folder: Is made when missing.

        Returns:
            Their paths.
        """
        rows, path = [asdict(row) | {"reached": row.reached} for row in self.rows], Path(folder)
        content = {"about": dict(self.about), "settings": dict(self.settings), "rows": rows}
        return [
            write_json(path / "results.json", _FORMAT, content),
            write_atomically(path / "results.csv", self.table().to_csv(index=False).encode()),
        ]

    @classmethod
    def load(cls, path: str | Path) -> BenchmarkResult:
        """Read ``results.json``.

        Args:
            path: The file.

        Raises:
            ResultFileError: When it is missing, damaged, or something else.
        """
        remedy = "pass a results.json that `papa benchmark --output` wrote"
        content = read_json(path, _FORMAT, _CONTENT, ResultFileError, "file with the results of a benchmark", remedy)
        return cls(**content)


_ROW: Mapping[str, Check] = {
    **dict.fromkeys(("encoder", "kind", "backend"), filled),
    **dict.fromkeys(("hidden", "layers", "heads", "batch", "length"), whole(1)),
    "share": maybe(number(0, 1)),
    **dict.fromkeys(("seconds", "low", "high", "sequences_per_second", "tokens_per_second"), number(0)),
    "peak_bytes": maybe(whole()),
    "held_bytes": whole(),
    **dict.fromkeys(("speed", "speed_low", "speed_high"), number(0)),
    "bound": maybe(number(0)),
}


def _row(name: str, value: object) -> Measurement:
    found = record({**_ROW, "reached": anything})(name, value)
    return Measurement(**{key: found[key] for key in _ROW})


_CONTENT = record({"about": mapped(anything), "settings": mapped(anything), "rows": listed(_row)})


def about(settings: BenchmarkSettings, device: torch.device) -> dict[str, Any]:
    """Machine, versions, and what else the numbers depend on; no path and no name of a machine.

    Args:
        settings: What was asked.
        device: Where it ran.
    """
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "device": device.type if device.type == "cpu" else f"{device.type} ({_device_name(device)})",
        "threads": settings.threads or torch.get_num_threads(),
        "dtype": settings.dtype,
        "seed": settings.seed,
        "repeats": settings.repeats,
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions(),
    }


def cpu_name() -> str:
    """The model of the processor, as the system has it."""
    listed = Path("/proc/cpuinfo")
    if listed.is_file():
        for line in listed.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
