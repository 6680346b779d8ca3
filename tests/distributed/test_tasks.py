"""Tasks on two processes: the scores, the predictions and the constants of one process."""

import json
import os
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed.processes import in_two_processes
from projects import LENGTH, tiny_config, trainer
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, WeightedRandomSampler
from transformers import BertModel, BertTokenizer

from papa_lightning import (
    ConstantAttention,
    MaskedLanguageModelingTask,
    SequenceClassificationTask,
    SimilarityDataModule,
    SimilarityTask,
    TokenClassificationTask,
)
from papa_lightning.callbacks import PredictionWriter
from papa_lightning.encoders import swapped_layers

pytestmark = pytest.mark.distributed
TAGS = ("O", "B-X", "I-X")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("encoder")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(35))]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    BertModel(tiny_config(), add_pooling_layer=False).save_pretrained(folder)
    return str(folder)


def make_loader(number: int, kind: str, batch_size: int = 2, **arguments: Any) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(1)
    rows: list[dict[str, Tensor]] = []
    for row in range(number):
        ids = torch.randint(5, 40, (LENGTH,), generator=generator)
        mask = (torch.arange(LENGTH) < 4 + row % 8).long()
        labels = torch.where(mask.bool(), torch.randint(0, 3, (LENGTH,), generator=generator), -100)
        label = labels if kind == "tokens" else torch.tensor(row % 2)
        rows.append({"input_ids": ids, "attention_mask": mask, "labels": label, "example_id": torch.tensor(row)})
    return DataLoader(rows, batch_size=batch_size, **arguments)


def make_task(encoder: str, kind: str, **arguments: Any) -> Any:
    torch.manual_seed(2)
    if kind == "sequences":
        return SequenceClassificationTask(encoder, 2, LENGTH, metrics=["accuracy", "f1"], **arguments)
    if kind == "tokens":
        names = ["entity_f1", "token_accuracy"]
        return TokenClassificationTask(encoder, 3, LENGTH, metrics=names, label_names=TAGS, **arguments)
    return MaskedLanguageModelingTask(encoder, LENGTH, mask_share=0.4, **arguments)


def scores(encoder: str, kind: str, number: int, **arguments: Any) -> dict[str, float]:
    """Of two sets, of which Lightning's sampler repeats an example of one and of the other not."""
    loaders = [make_loader(number, kind), make_loader(number + 1, kind, batch_size=3)]
    results = trainer(**arguments).validate(make_task(encoder, kind), loaders, verbose=False)
    return {name: value for result in results for name, value in result.items()}


def scores_with_a_sampler(encoder: str, **arguments: Any) -> dict[str, float]:
    """Lightning wraps the user's own sampler; what it chooses is then shared out, and repeated in the same way."""
    sampler = WeightedRandomSampler([1.0] * 9, 5, generator=torch.Generator().manual_seed(3))
    loader = make_loader(9, "sequences", sampler=sampler)
    return dict(trainer(**arguments).validate(make_task(encoder, "sequences"), loader, verbose=False)[0])


def predict(encoder: str, kind: str, path: Path, **arguments: Any) -> None:
    run = trainer(PredictionWriter(str(path)), **arguments)
    run.predict(make_task(encoder, kind), make_loader(7, kind), return_predictions=False)


class Shares(IterableDataset[dict[str, Tensor]]):
    """Each process reads the examples of its turn."""

    def __init__(self, examples: Any) -> None:
        self.examples = examples

    def __iter__(self) -> Any:
        return islice(self.examples, int(os.environ.get("RANK", 0)), None, int(os.environ.get("WORLD_SIZE", 1)))


def predict_without_places(encoder: str, folder: Path, **arguments: Any) -> None:
    examples = make_loader(7, "sequences").dataset
    ready = DataLoader(list(DataLoader(examples, batch_size=2)), batch_size=None)
    run = trainer(PredictionWriter(str(folder / "out.jsonl")), **arguments)
    loaders = [DataLoader(Shares(examples), batch_size=2), ready]
    run.predict(make_task(encoder, "sequences"), loaders, return_predictions=False)


def train_constants(encoder: str, regime: str, **arguments: Any) -> list[Tensor]:
    """DDP itself would complain about a parameter that no loss reaches."""
    task = make_task(encoder, "sequences", regime=regime, constants_learning_rate=0.05)
    run = trainer(ConstantAttention(max_length=LENGTH), max_epochs=2, **arguments)
    run.fit(task, make_loader(8, "sequences"), make_loader(3, "sequences"))
    return [layer.constants.detach() for layer in swapped_layers(task.encoder)]


def embedding_scores(encoder: str, pairs: Path, **arguments: Any) -> dict[str, float]:
    """Of 13 texts, of which Lightning's sampler repeats one."""
    data = SimilarityDataModule(encoder, str(pairs), max_length=LENGTH, batch_size=2)
    run = trainer(**arguments)
    return dict(run.validate(SimilarityTask(encoder, LENGTH), datamodule=data, verbose=False)[0])


def recover(encoder: str, pairs: Path, **arguments: Any) -> list[Tensor]:
    """The encoder of a recovery, and its score."""
    data = SimilarityDataModule(encoder, str(pairs), max_length=LENGTH, batch_size=2)
    task, run = SimilarityTask(encoder, LENGTH), trainer(ConstantAttention(max_length=LENGTH), **arguments)
    run.fit(task, datamodule=data)
    return [*(one.detach() for one in task.encoder.parameters()), run.callback_metrics["val/spearman"]]


SCORED = [("sequences", 7), ("sequences", 1), ("tokens", 7), ("masked", 5)]


def run(folder: Path) -> dict[str, Any]:
    encoder = (folder / "encoder.txt").read_text()
    two: dict[str, Any] = {"devices": 2, "strategy": "ddp"}
    results: dict[str, Any] = {f"{kind}-{number}": scores(encoder, kind, number, **two) for kind, number in SCORED}
    results["sampler"] = scores_with_a_sampler(encoder, **two)
    for kind in ("sequences", "tokens"):
        predict(encoder, kind, folder / "two" / f"{kind}.jsonl", **two)
    predict_without_places(encoder, folder / "shares", **two)
    for regime in ("fine_tune_constants", "constants"):
        results[regime] = train_constants(encoder, regime, **two)
    results["embeddings"] = embedding_scores(encoder, folder / "pairs", **two)
    results["recovery"] = recover(encoder, folder / "pairs", **two)
    return results


@pytest.fixture(scope="module")
def two_processes(encoder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two_processes")
    (folder / "encoder.txt").write_text(encoder)
    (folder / "pairs").mkdir()
    rows = [{"sentence1": f"w{row} w1", "sentence2": f"w{row // 2} w{row}", "score": row % 4} for row in range(7)]
    for split in ("train", "validation"):
        (folder / "pairs" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    in_two_processes(run, folder)
    return folder


@pytest.mark.parametrize(("kind", "number"), SCORED)
def test_validation_counts_each_example_once(kind: str, number: int, encoder: str, two_processes: Path) -> None:
    one = scores(encoder, kind, number)
    assert len(one) == 6
    for rank in range(2):
        two = torch.load(two_processes / f"rank{rank}.pt")[f"{kind}-{number}"]
        assert two == pytest.approx(one, rel=1e-6)


def test_a_sampler_of_the_users_own(encoder: str, two_processes: Path) -> None:
    two = torch.load(two_processes / "rank0.pt")["sampler"]
    assert two == pytest.approx(scores_with_a_sampler(encoder), rel=1e-6)


@pytest.mark.parametrize("kind", ["sequences", "tokens"])
def test_predictions_are_one_file_without_repeats(kind: str, encoder: str, two_processes: Path, tmp_path: Path) -> None:
    predict(encoder, kind, tmp_path / "one.jsonl")
    one, two = (
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in (tmp_path / "one.jsonl", two_processes / "two" / f"{kind}.jsonl")
    )
    assert [row["example_id"] for row in two] == list(range(7))
    name = "labels" if kind == "tokens" else "label"
    assert [row[name] for row in two] == [row[name] for row in one]
    assert sorted(file.name for file in (two_processes / "two").iterdir()) == ["sequences.jsonl", "tokens.jsonl"]


def test_predictions_without_places_are_all_written(two_processes: Path) -> None:
    """The second loader has four batches of two and one."""
    for number in range(2):
        rows = (two_processes / "shares" / f"out-{number}.jsonl").read_text().splitlines()
        assert [json.loads(row)["example_id"] for row in rows] == list(range(7))


@pytest.mark.parametrize("regime", ["fine_tune_constants", "constants"])
def test_constants_that_learn_are_the_same_everywhere(regime: str, two_processes: Path) -> None:
    first, second = (torch.load(two_processes / f"rank{rank}.pt")[regime] for rank in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)
        assert (one >= 0).all()
        sums = one.sum(dim=-1)
        torch.testing.assert_close(sums, (sums > 0).to(sums.dtype))
        assert sums.sum() > 0


def test_embeddings_have_the_scores_of_one_process(encoder: str, two_processes: Path) -> None:
    one = embedding_scores(encoder, two_processes / "pairs")
    assert set(one) == {"val/spearman", "val/pearson"}
    for rank in range(2):
        assert torch.load(two_processes / f"rank{rank}.pt")["embeddings"] == pytest.approx(one, abs=1e-6)


def test_a_recovery_is_the_same_everywhere(two_processes: Path) -> None:
    first, second = (torch.load(two_processes / f"rank{rank}.pt")["recovery"] for rank in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)
