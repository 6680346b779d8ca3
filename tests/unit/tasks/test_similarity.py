"""The task without a probe: scores of a Trainer, packing, constants, recovery, and what is refused."""

import json
import string
from pathlib import Path
from typing import Any

import pytest
import torch
from projects import trainer
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import BertModel

from papa_lightning import ConstantAttention, SimilarityDataModule, SimilarityTask
from papa_lightning.calibration import calibrate
from papa_lightning.callbacks import PredictionWriter
from papa_lightning.callbacks.learned_constants import learning_mixers
from papa_lightning.embeddings import Embedder
from papa_lightning.encoders import is_calibrated, swapped_layers
from papa_lightning.errors import PapaError
from papa_lightning.tasks.similarity import RowEmbeddings

LENGTH = 12


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of random letters, 14 a split."""
    folder, draws = tmp_path_factory.mktemp("pairs"), torch.Generator().manual_seed(0)

    def text() -> str:
        return " ".join(string.ascii_lowercase[i] for i in torch.randint(0, 26, (4,), generator=draws).tolist())

    for split in ("train", "validation"):
        rows = [{"sentence1": text(), "sentence2": text(), "score": number % 6} for number in range(14)]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture
def data(pairs: Path, letters_folder: str) -> SimilarityDataModule:
    return SimilarityDataModule(letters_folder, str(pairs), max_length=LENGTH, batch_size=5)


def validated(task: SimilarityTask, data: SimilarityDataModule, **options: Any) -> dict[str, float]:
    return dict(trainer(**options).validate(task, datamodule=data, verbose=False)[0])


def test_scores_are_those_of_the_embeddings(data, letters_folder) -> None:
    task = SimilarityTask(letters_folder, LENGTH, pooling="last_token", normalize=False)
    found = validated(task, data)
    embedded = Embedder(task.encoder, "last_token").embed_rows(data.val_dataloader())
    wanted = data.judgements().answers(embedded).scores()
    assert found == pytest.approx({f"val/{name}": score for name, score in wanted.items()}, abs=1e-6)
    assert task.score_name == "val/spearman"
    assert dict(trainer().test(task, datamodule=data, verbose=False)[0]) == pytest.approx(
        {name.replace("val", "test"): score for name, score in found.items()}
    )
    assert validated(SimilarityTask(letters_folder, LENGTH, ["ndcg@10", "spearman"], "last_token"), data) == found


def test_packing_changes_no_score(data, letters_folder) -> None:
    scores = [validated(SimilarityTask(letters_folder, LENGTH, packing=packing), data) for packing in (True, False)]
    assert scores[0] == scores[1]


def test_constants_of_a_file_change_the_scores(data, letters_folder, tmp_path) -> None:
    task = SimilarityTask(letters_folder, LENGTH)
    data.setup("fit")
    constants = calibrate(task.encoder, data.train_dataloader(), max_length=LENGTH)
    constants.save(tmp_path / "c.safetensors")
    swapped = SimilarityTask(letters_folder, LENGTH, constants=str(tmp_path / "c.safetensors"))
    assert is_calibrated(swapped.encoder)
    assert validated(swapped, data) != validated(task, data)


def test_a_fit_recovers_the_embeddings_of_the_original(data, letters_folder, tmp_path) -> None:
    loud = BertModel.from_pretrained(letters_folder)
    with torch.no_grad():  # attention that tells tokens apart, which constants change
        for name, weight in loud.named_parameters():
            weight.mul_(10 if ".attention." in name and weight.dim() == 2 else 1)
    loud.save_pretrained(tmp_path)
    distances = []
    for rate, epochs in ((1e-9, 1), (1e-2, 12)):
        task = SimilarityTask(str(tmp_path), LENGTH, learning_rate=rate, gram_weight=1.0)
        original, table = Embedder(task.make_encoder()), task.encoder.get_input_embeddings().weight.clone()
        run = trainer(ConstantAttention(max_length=LENGTH), max_epochs=epochs, check_val_every_n_epoch=epochs)
        run.fit(task, datamodule=data)
        rows = data.train_dataloader().dataset.with_format("torch")
        batch = {name: torch.as_tensor(rows[:][name]) for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            distances.append(float(1 - (task(batch) * original.embed(batch)).sum(dim=1).mean()))
        assert not task.encoder.training
        assert "val/spearman" in run.callback_metrics
        assert task._teacher is None
        assert torch.equal(task.encoder.get_input_embeddings().weight, table)
    assert 0 < distances[1] < 0.5 * distances[0]


def test_constants_learn_if_asked(data, letters_folder) -> None:
    task = SimilarityTask(letters_folder, LENGTH, learn_constants=True, learning_rate=1e-2)
    trainer(ConstantAttention(max_length=LENGTH), max_epochs=2).fit(task, datamodule=data)
    assert len(learning_mixers(task.encoder)) == 2
    rows = torch.stack([layer.constants.detach().sum(dim=-1) for layer in swapped_layers(task.encoder)])
    torch.testing.assert_close(rows, torch.ones_like(rows))


def test_a_checkpoint_loads_with_its_constants(data, letters_folder, tmp_path) -> None:
    task = SimilarityTask(letters_folder, LENGTH, pooling="class_token")
    run = trainer(ConstantAttention(max_length=LENGTH), max_epochs=1)
    run.fit(task, datamodule=data)
    run.save_checkpoint(tmp_path / "task.ckpt")
    loaded = SimilarityTask.load_from_checkpoint(tmp_path / "task.ckpt")
    assert loaded.embedding == task.embedding
    assert validated(loaded, data) == validated(task, data)


def test_predictions_are_embeddings(data, letters_folder, tmp_path) -> None:
    task = SimilarityTask(letters_folder, LENGTH)
    run = trainer(PredictionWriter(str(tmp_path / "p.jsonl")))
    run.predict(task, datamodule=data, return_predictions=False)
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [row["example_id"] for row in rows] == list(range(len(rows)))
    wanted = Embedder(task.encoder).embed_rows(data.predict_dataloader())
    torch.testing.assert_close(torch.tensor([row["embedding"] for row in rows]), wanted, rtol=0, atol=2e-6)
    with torch.no_grad():
        task.encoder.get_input_embeddings().weight.fill_(torch.nan)
    with pytest.raises(PapaError, match="the embedding of example_id 0 is not finite"):
        run.predict(task, datamodule=data, return_predictions=False)


def test_repeated_rows_count_once_in_the_order_of_their_numbers() -> None:
    metric = RowEmbeddings()
    for rows, values in (([3, 0], [3.0, 0.0]), ([1, 3], [1.0, 9.0])):
        metric.update(torch.tensor(rows), torch.tensor(values)[:, None])
    found, kept = metric.compute()
    assert (found.tolist(), kept.squeeze(1).tolist()) == ([0, 1, 3], [0.0, 1.0, 3.0])


def test_a_trial_run_has_no_scores(data, letters_folder) -> None:
    assert validated(SimilarityTask(letters_folder, LENGTH), data, fast_dev_run=True) == {}


@pytest.mark.parametrize("stage", ["val", "test"])
def test_a_run_that_failed_leaves_no_embeddings_for_the_next(stage, data, letters_folder, monkeypatch) -> None:
    task, verb = SimilarityTask(letters_folder, LENGTH), "validate" if stage == "val" else "test"
    embed = task._embed

    def failing(stage: Any, batch: Any) -> None:
        embed(stage, {**batch, "input_ids": batch["input_ids"].flip(0)})
        raise KeyboardInterrupt

    wanted = dict(getattr(trainer(), verb)(task, datamodule=data, verbose=False)[0])
    monkeypatch.setattr(task, "_embed", failing)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        getattr(trainer(), verb)(task, datamodule=data, verbose=False)
    monkeypatch.undo()
    assert dict(getattr(trainer(), verb)(task, datamodule=data, verbose=False)[0]) == wanted


def test_texts_that_were_left_out_are_counted(data, letters_folder) -> None:
    with pytest.raises(PapaError, match=r"10 of 28 texts were embedded, .*leave limit_val_batches out, and pass max_"):
        validated(SimilarityTask(letters_folder, LENGTH), data, limit_val_batches=2)


def test_what_cannot_be_done_is_refused(data, letters_folder, tmp_path) -> None:
    task = SimilarityTask(letters_folder, LENGTH)
    with pytest.raises(PapaError, match="the encoder has no constant heads, so there is nothing to recover"):
        trainer(max_epochs=1).fit(task, datamodule=data)
    data.setup("validate")
    with pytest.raises(PapaError, match="the data of validation have no judgements"):
        trainer().validate(task, data.val_dataloader(), verbose=False)
    rows: list[dict[str, Tensor]] = [{"input_ids": torch.ones(4).long(), "attention_mask": torch.ones(4)}]
    with pytest.raises(PapaError, match="a batch has no example_id, only input_ids, attention_mask"):
        trainer().predict(task, DataLoader(rows))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metrics": ["accuracy"]}, "metrics has 'accuracy', but embeddings have spearman, pearson, ndcg@10"),
        ({"metrics": []}, r"metrics is \[\], but must hold 1 names or more"),
        ({"pooling": "max"}, "pooling is 'max', but must be one of None, 'mean'"),
        ({"normalize": "yes"}, "normalize is 'yes', but must be true or false"),
        ({"gram_weight": -1.0}, "^gram_weight is -1.0: pass a value that is at least 0"),
        ({"learning_rate": 0.0}, "^learning_rate is 0.0: pass a value that is above 0"),
        ({"max_length": 0}, "max_length is 0: pass a value that is at least 1"),
        ({"max_length": 30}, "max_length is 30, but encoder .* has positions for 20 tokens"),
        ({"heads": 0.5}, "heads is 0.5 and ranking is None, but there is no constants file"),
        ({"learn_constants": True}, "learn_constants is True, but the encoder has no constant heads"),
    ],
)
def test_wrong_arguments(letters_folder, data, arguments, message) -> None:
    with pytest.raises(PapaError, match=message):
        trainer(max_epochs=1).fit(
            SimilarityTask(letters_folder, **{"max_length": LENGTH, **arguments}), datamodule=data
        )
