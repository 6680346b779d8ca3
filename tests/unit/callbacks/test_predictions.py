"""The callback that writes predictions, on any module that gives them in the form of the tasks."""

import copy
import io
import json
import os
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from datasets import load_dataset
from lightning.pytorch.loggers import CSVLogger
from projects import trainer
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from papa_lightning.callbacks import PredictionWriter, predictions
from papa_lightning.callbacks.predictions import prediction_rows
from papa_lightning.errors import PapaError


class Parity(L.LightningModule):
    """Predicts whether a number is odd; or, as a token task would, of all numbers below it."""

    def __init__(self, tokens: bool = False, names: tuple[str, ...] | None = ("even", "odd")) -> None:
        super().__init__()
        self.tokens, self.label_names = tokens, names

    def predict_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        labels = batch % 2
        if self.tokens:
            positions = torch.arange(4).expand(len(batch), 4)
            labels = torch.where(positions < batch[:, None], positions % 2, -100)
        probabilities = torch.nn.functional.one_hot(labels.clamp_min(0), 2).float()
        return {"example_id": 100 + batch, "labels": labels, "probabilities": probabilities}


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_one_row_an_example_in_order(tmp_path: Path) -> None:
    path = tmp_path / "new" / "out.jsonl"
    writer = PredictionWriter(str(path))
    shuffled = DataLoader(range(7), batch_size=3, shuffle=True)
    trainer(writer).predict(Parity(), shuffled)
    rows = read(path)
    assert [row["example_id"] for row in rows] == list(range(100, 107))
    assert rows[1] == {"example_id": 101, "label": "odd", "probabilities": [0.0, 1.0]}
    assert writer.paths == [str(path)]
    assert [one.name for one in path.parent.iterdir()] == ["out.jsonl"]


def test_a_second_prediction_takes_the_place_of_the_first(tmp_path: Path) -> None:
    run, path = trainer(PredictionWriter(str(tmp_path / "out.jsonl"))), tmp_path / "out.jsonl"
    for count in (5, 2):
        run.predict(Parity(), DataLoader(range(count)))
        assert len(read(path)) == count


@pytest.mark.parametrize("tokens", [False, True])
def test_parquet_holds_the_same(tokens: bool, tmp_path: Path) -> None:
    for name in ("out.jsonl", "out.parquet"):
        trainer(PredictionWriter(str(tmp_path / name))).predict(Parity(tokens), DataLoader(range(5), batch_size=2))
    table = load_dataset("parquet", data_files=str(tmp_path / "out.parquet"), split="train", cache_dir=str(tmp_path))
    assert table.to_list() == read(tmp_path / "out.jsonl")


def test_tokens_without_a_label_are_left_out(tmp_path: Path) -> None:
    trainer(PredictionWriter(str(tmp_path / "out.jsonl"))).predict(
        Parity(tokens=True, names=None), DataLoader(range(4))
    )
    assert [row["labels"] for row in read(tmp_path / "out.jsonl")] == [[], [0], [0, 1], [0, 1, 0]]


def test_a_file_for_each_loader(tmp_path: Path) -> None:
    loaders = [DataLoader(range(3)), DataLoader(range(5))]
    writer = PredictionWriter(str(tmp_path / "out.jsonl"))
    trainer(writer).predict(Parity(), loaders)
    assert [len(read(Path(path))) for path in writer.paths] == [3, 5]
    assert [Path(path).name for path in writer.paths] == ["out-0.jsonl", "out-1.jsonl"]


class Stream(IterableDataset[int]):
    def __init__(self, *numbers: int) -> None:
        self.numbers = numbers

    def __iter__(self) -> Any:
        return iter(self.numbers)


def test_loaders_with_and_without_places(tmp_path: Path) -> None:
    """Lightning keeps telling the places of the last batch of a loader that has them."""
    writer = PredictionWriter(str(tmp_path / "out.jsonl"))
    ready = DataLoader([torch.tensor([3, 1]), torch.tensor([2])], batch_size=None)
    shuffled = DataLoader(range(5), batch_size=3, shuffle=True)
    trainer(writer).predict(Parity(), [shuffled, DataLoader(Stream(4, 9, 2), batch_size=2), ready, shuffled])
    found = [[row["example_id"] - 100 for row in read(Path(path))] for path in writer.paths]
    assert found == [[0, 1, 2, 3, 4], [4, 9, 2], [3, 1, 2], [0, 1, 2, 3, 4]]


def test_the_default_is_the_folder_of_the_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    writer = PredictionWriter()
    trainer(writer, logger=CSVLogger(tmp_path / "logs")).predict(Parity(), DataLoader(range(3)))
    assert Path(writer.paths[0]).is_relative_to(tmp_path / "logs")
    trainer(writer).predict(Parity(), DataLoader(range(3)))
    assert writer.paths == ["predictions.jsonl"]


def test_an_interrupted_prediction_leaves_what_was_there(tmp_path: Path) -> None:
    class Broken(Parity):
        def predict_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
            if batch_idx == 2:
                raise RuntimeError("broken")
            return super().predict_step(batch, batch_idx)

    path = tmp_path / "out.jsonl"
    path.write_text("before")
    with pytest.raises(RuntimeError, match="broken"):
        trainer(PredictionWriter(str(path))).predict(Broken(), DataLoader(range(5)))
    assert [one.name for one in tmp_path.iterdir()] == ["out.jsonl"]
    assert path.read_text() == "before"


def test_planted_links_are_not_followed(tmp_path: Path) -> None:
    path, victim = tmp_path / "out.jsonl", tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / ".out.jsonl.part0").symlink_to(victim)
    trainer(PredictionWriter(str(path))).predict(Parity(), DataLoader(range(5)))
    assert victim.read_text() == "mine"
    assert len(read(path)) == 5


def test_links_lead_to_the_output(tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").symlink_to("target.jsonl")
    trainer(PredictionWriter(str(tmp_path / "out.jsonl"))).predict(Parity(), DataLoader(range(5)))
    assert (tmp_path / "out.jsonl").is_symlink()
    assert len(read(tmp_path / "target.jsonl")) == 5
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("loaders", [1, 2])
def test_pipes_are_refused_before_anything_is_predicted(loaders: int, tmp_path: Path) -> None:
    class Never(Parity):
        def predict_step(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
            raise AssertionError("predicted")

    data = [DataLoader(range(5)) for _ in range(loaders)]
    os.mkfifo(tmp_path / ("out.jsonl" if loaders == 1 else "out-1.jsonl"))
    with pytest.raises(PapaError, match=r"^output is .*, which is a pipe and cannot be written as a file"):
        trainer(PredictionWriter(str(tmp_path / "out.jsonl"))).predict(Never(), data)
    assert len(list(tmp_path.iterdir())) == 1


def test_what_a_killed_run_left_goes(tmp_path: Path) -> None:
    (tmp_path / ".papa-0123456789ab0000.part").write_text("half")
    trainer(PredictionWriter(str(tmp_path / "out.jsonl"))).predict(Parity(), DataLoader(range(5)))
    assert [one.name for one in tmp_path.iterdir()] == ["out.jsonl"]


class Full(io.RawIOBase):
    """A file on a disk that is full."""

    name = "part"

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("rows", [5, 500])
def test_a_full_disk_is_told_with_the_output(rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictions, "open_part", lambda path: io.BufferedWriter(Full()))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PapaError, match=r"^output is '.*out\.jsonl', which cannot be written \(No space left on"):
        trainer(PredictionWriter(str(tmp_path / "out.jsonl"))).predict(Parity(), DataLoader(range(rows), batch_size=50))
    assert list(tmp_path.iterdir()) == []


def test_can_be_copied() -> None:
    assert copy.deepcopy(PredictionWriter("a.parquet")).output == "a.parquet"


@pytest.mark.parametrize("output", ["out.csv", "folder"])
def test_other_kinds_of_files(output: str) -> None:
    with pytest.raises(PapaError, match=rf"output is '{output}', but must be a file that ends with .jsonl or .parquet"):
        PredictionWriter(output)


@pytest.mark.parametrize(
    ("prediction", "found"), [(torch.zeros(3), "Tensor"), ({"labels": torch.zeros(3)}, "labels"), (None, "NoneType")]
)
def test_other_predictions(prediction: Any, found: str) -> None:
    with pytest.raises(PapaError, match=rf"predict_step returned {found}, but PredictionWriter writes mappings"):
        list(prediction_rows(prediction, None))


def test_words_without_a_token_have_an_entry(tmp_path: Path) -> None:
    class Words(Parity):
        def predict_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
            words = torch.tensor([[-100, 0, 2, -100]]).expand(len(batch), 4)
            counts = torch.full((len(batch),), 4)
            return {**super().predict_step(batch, batch_idx), "word_ids": words, "num_words": counts}

    for suffix in ("jsonl", "parquet"):
        path = tmp_path / f"out.{suffix}"
        trainer(PredictionWriter(str(path))).predict(Words(tokens=True), DataLoader([4, 5]))
        found = (
            read(path) if suffix == "jsonl" else load_dataset("parquet", data_files=str(path), split="train").to_list()
        )
        assert list(found[1]["labels"]) == ["odd", None, "even", None]
        assert [one is None or list(one) for one in found[1]["probabilities"]] == [[0.0, 1.0], True, [1.0, 0.0], True]


def test_predictions_that_are_not_finite_are_refused() -> None:
    prediction = {"example_id": torch.tensor([7]), "labels": torch.tensor([1])}
    prediction["probabilities"] = torch.tensor([[float("nan"), 0.5]])
    with pytest.raises(PapaError, match="the prediction of example_id 7 has probabilities that are not finite"):
        list(prediction_rows(prediction, None))
