"""One bit that is wrong, anywhere in a file that we write and read back: an error of ours, or nothing has changed."""

from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
import torch
from unit.study.feature_cases import make_rows, make_task, save_encoder

from papa_lightning import AttentionConstants, HeadRanking
from papa_lightning.benchmark.results import BenchmarkResult, Measurement
from papa_lightning.calibration import CompactConstants
from papa_lightning.errors import PapaError
from papa_lightning.study.comparison.results import KindResult
from papa_lightning.study.features.features import StoredFeatures, store_features
from papa_lightning.study.results import CellResult, load_table, results_table, save_table
from papa_lightning.study.store import StudyFolder

AVERAGE = AttentionConstants(torch.rand(1, 2, 3, 3) / 3, torch.ones(3, 3), {"n": 0.5}, variance=torch.rand(1, 2))
CELL = CellResult("e", "t", "random:3", 0.5, 36, 72, 7, "average", "f1", {"f1": 0.81}, 1.5, {"torch": "2"}, "0a", [0.1])
KIND = KindResult("a", "aft", 3, "f1", 0.5, 1.5, 10, 20, 2.0, float("nan"), 3.0, 4.0, {"torch": "2"}, "1f")
TIMES = (1.0, 1.0, 1.0, 1.0, 1.0)
ROW = Measurement("e", 8, 1, 2, 3, 4, "constant", 0.5, "sdpa", *TIMES, None, 7, 1.0, 0.9, 1.1, 1.5)


def of_constants(one: AttentionConstants) -> Any:
    return [(one.values.tolist(), one.pair_counts.tolist(), one.variance.tolist(), one.metadata)]


def of_compact(one: CompactConstants) -> Any:
    layers = [(layer.forms, layer.reach, layer.beyond.tolist(), layer.expand().tolist()) for layer in one.layers]
    return [layers, one.errors.tolist(), one.metadata]


def write_features(folder: Path, encoder: str) -> Path:
    store_features(make_task(encoder, "mean"), make_rows(2, "mean"), folder / "f", budget_bytes=10**9)
    return folder / "f"


def of_features(folder: Path) -> Any:
    found = StoredFeatures(folder)
    return [found.reading, found.dtype, found._table.tolist(), [one.tolist() for one in found.index.tensors()]]


def write_study(folder: Path) -> Path:
    named = {"encoder": "e", "task": "t", "kind": "average", "path": "constants/a"}
    StudyFolder(folder).write({"seeds": [0]}, {"dtype": "float32"}, {"constants": [named]})
    return folder / "study.json"


def write_table(folder: Path) -> Path:
    save_table(results_table([CELL]), folder)
    return folder / "results.parquet"


def plain(value: Any) -> str:
    return repr(value)  # NaN is like itself


KINDS: dict[str, tuple[Any, Any]] = {
    "constants": (lambda to: AVERAGE.save(to / "c"), lambda path: of_constants(AttentionConstants.load(path))),
    "compact": (
        lambda to: CompactConstants.fit(AVERAGE, width=1).save(to / "c"),
        lambda path: of_compact(CompactConstants.load(path)),
    ),
    "ranking": (
        lambda to: HeadRanking([(0, 1), (0, 0)], [0.5, 1.5], "gate").save(to / "r") or to / "r",
        lambda path: astuple(HeadRanking.load(path)),
    ),
    "cell": (lambda to: CELL.save(to / "c"), lambda path: astuple(CellResult.load(path))),
    "kind": (lambda to: KIND.save(to / "k"), lambda path: astuple(KindResult.load(path))),
    "study": (write_study, lambda path: StudyFolder(path.parent).read()),
    "table": (write_table, lambda path: load_table(path.parent).to_csv()),
    "benchmark": (
        lambda to: BenchmarkResult([ROW], {"a": 1}, {"b": 2.0}).save(to)[0],
        lambda path: astuple(BenchmarkResult.load(path)),
    ),
}


def outcomes(path: Path, read: Any, most: int = 1000) -> list[str]:
    """Results of flipping every bit, or a number of bits spread over the file."""
    whole = path.read_bytes()
    expected, found = plain(read()), []
    for bit in range(0, 8 * len(whole), 8 * len(whole) // most | 1):  # an odd step meets each bit of a byte
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            result = plain(read())
        except PapaError as error:
            found.append("refused" if "\n" not in str(error) else "more than one line")
        else:
            assert result == expected, f"bit {bit % 8} of byte {bit // 8}"
            found.append("nothing changed")
    path.write_bytes(whole)
    assert "more than one line" not in found
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_flipped_bits(kind: str, tmp_path: Path) -> None:
    write, read = KINDS[kind]
    path = write(tmp_path)
    found = outcomes(path, lambda: read(path))
    assert found.count("refused") >= 0.9 * len(found) > 100 or kind == "table"


@pytest.mark.parametrize("name", ["manifest.json", "index.safetensors", "vectors.npy"])
def test_flipped_bits_of_features(name: str, tmp_path: Path) -> None:
    folder = write_features(tmp_path, save_encoder(str(tmp_path / "encoder")))
    found = outcomes(folder / name, lambda: of_features(folder))
    assert found.count("refused") >= 0.9 * len(found) > 100
