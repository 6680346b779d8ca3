"""Swapped encoders saved and read by other libraries: transformers with its Trainer, sentence-transformers, peft."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Pooling, Transformer
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    Trainer,
    TrainingArguments,
    pipeline,
)

import papa_lightning
from papa_lightning import (
    AttentionConstants,
    PapaError,
    SequenceClassificationTask,
    calibrate,
    export_encoder,
    restore_attention,
    swap_attention,
)
from papa_lightning.encoders import is_calibrated, swapped_layers
from papa_lightning.encoders.loading import load_encoder, load_plain_encoder
from papa_lightning.export.source import ExportSettings, export_source

LENGTH = 12


def batch(seed: int = 0, size: int = 4) -> dict[str, Tensor]:
    ids = torch.randint(5, 40, (size, LENGTH), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def rows() -> list[dict[str, Tensor]]:
    found = batch(1, 16)
    return [{**{name: held[row] for name, held in found.items()}, "labels": torch.tensor(row % 2)} for row in range(16)]


def swap(model: nn.Module) -> Any:
    return swap_attention(
        model.eval(), "constant", constants=calibrate(model, [batch()], LENGTH), heads=[(0, 1), (1, 0)]
    )


def hidden(encoder: Any) -> Tensor:
    with torch.no_grad():
        return encoder(**batch()).last_hidden_state


def trainer(model: Any, folder: Path, **options: Any) -> Trainer:
    quiet = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "logging_strategy": "no"}
    arguments = TrainingArguments(str(folder), per_device_train_batch_size=4, learning_rate=1e-2, **quiet, **options)
    return Trainer(model, arguments, train_dataset=rows(), eval_dataset=rows())


@pytest.fixture
def folder(encoder_folders: dict[str, str]) -> str:
    return encoder_folders["bert"]


@pytest.fixture
def swapped(folder: str, tmp_path: Path) -> Path:
    """A folder of a swapped encoder."""
    target = tmp_path / "swapped"
    swap(AutoModel.from_pretrained(folder)).save_pretrained(target)
    return target


def test_trainer_of_transformers(folder: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = swap(AutoModelForSequenceClassification.from_pretrained(folder))
    first = trainer(
        model,
        tmp_path / "run",
        num_train_epochs=2,
        save_strategy="epoch",
        eval_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
    )
    first.train()
    loss = first.evaluate()["eval_loss"]
    assert loss == min(entry["eval_loss"] for entry in first.state.log_history if "eval_loss" in entry)
    first.save_model(str(tmp_path / "saved"))
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert is_calibrated(loaded)
    assert trainer(loaded, tmp_path / "other").evaluate()["eval_loss"] == pytest.approx(loss, rel=1e-5)
    again = trainer(loaded, tmp_path / "run", num_train_epochs=3, save_strategy="no")
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    assert again.state.global_step == 12
    constants = [layer.constants for layer in swapped_layers(model)]
    assert all(torch.equal(one, layer.constants) for one, layer in zip(constants, swapped_layers(loaded), strict=True))


def sentences(model: SentenceTransformer) -> Tensor:
    found = model.encode(["a sentence", "b"], convert_to_tensor=True)
    assert isinstance(found, Tensor)
    return found


def sentence_transformer(folder: str) -> SentenceTransformer:
    body = Transformer(folder, max_seq_length=LENGTH)
    return SentenceTransformer(modules=[body, Pooling(16)], device="cpu")


def test_sentence_transformer(folder: str, tmp_path: Path) -> None:
    model = sentence_transformer(folder)
    swap(model[0].model)
    model.save(str(tmp_path / "saved"))
    loaded = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert is_calibrated(loaded)
    torch.testing.assert_close(sentences(loaded), sentences(model))


def test_exported_encoder_in_a_sentence_transformer_a_task_model_and_a_pipeline(folder: str, tmp_path: Path) -> None:
    model = sentence_transformer(folder)
    swap(model[0].model)
    expected = sentences(model)
    export_encoder(model, tmp_path / "served", model.tokenizer)
    model[0].model = papa_lightning.load_exported_encoder(tmp_path / "served")
    model.save(str(tmp_path / "saved"))
    loaded = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    torch.testing.assert_close(sentences(loaded), expected)
    with pytest.raises(PapaError, match="exported without the query and key weights"):
        restore_attention(loaded)
    task = BertForSequenceClassification(loaded[0].model.config).eval()
    task.bert = loaded[0].model
    task.save_pretrained(tmp_path / "task")
    task_again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "task")
    with torch.no_grad():
        torch.testing.assert_close(task_again(**batch()).logits, task(**batch()).logits)
    assert [one.requires_grad for one in task_again.parameters()] == [one.requires_grad for one in task.parameters()]
    model.tokenizer.save_pretrained(tmp_path / "task")
    [found] = pipeline("text-classification", model=str(tmp_path / "task"), device="cpu")("a sentence")
    assert 0 <= found["score"] <= 1


def test_adapters(swapped: Path, tmp_path: Path) -> None:
    """The folder of an adapter names the folder of the swapped encoder, and that brings the constants."""
    torch.manual_seed(0)
    settings = LoraConfig(r=2, target_modules=["value", "dense"], init_lora_weights=False)
    adapted = get_peft_model(AutoModel.from_pretrained(swapped), settings).eval()
    adapted.save_pretrained(str(tmp_path / "adapter"))
    loaded = PeftModel.from_pretrained(AutoModel.from_pretrained(swapped), str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(hidden(loaded), hidden(adapted))
    alone = AutoModel.from_pretrained(tmp_path / "adapter").eval()
    assert is_calibrated(alone)
    torch.testing.assert_close(hidden(alone), hidden(adapted))
    expected = hidden(adapted)
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(hidden(AutoModel.from_pretrained(tmp_path / "merged")), expected, atol=1e-5, rtol=1e-5)


def test_our_own_loaders(folder: str, swapped: Path, tmp_path: Path) -> None:
    expected = hidden(AutoModel.from_pretrained(swapped))
    torch.testing.assert_close(hidden(load_encoder(str(swapped))), expected)
    torch.testing.assert_close(hidden(papa_lightning.load_exported_encoder(swapped)), expected)
    task = SequenceClassificationTask(str(swapped), num_labels=2, max_length=LENGTH)
    torch.testing.assert_close(hidden(task.encoder.eval()), expected)
    found = calibrate(load_encoder(str(swapped)), [batch()], LENGTH)
    torch.testing.assert_close(found.values, calibrate(load_encoder(folder), [batch()], LENGTH).values)
    served = export_source(ExportSettings(encoder=str(swapped)), str(tmp_path / "served"))
    torch.testing.assert_close(hidden(papa_lightning.load_exported_encoder(served)), expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(PapaError, match="was saved while its attention was swapped"):
        load_plain_encoder(str(swapped))


def test_other_constants_for_an_encoder_that_was_saved_swapped(swapped: Path, tmp_path: Path) -> None:
    uniform = AttentionConstants(torch.full((2, 2, LENGTH, LENGTH), 1 / LENGTH), torch.ones(LENGTH, LENGTH))
    uniform.save(tmp_path / "uniform.safetensors")
    file = str(tmp_path / "uniform.safetensors")
    served = export_source(ExportSettings(encoder=str(swapped), constants=file), str(tmp_path / "served"))
    assert [len(layer.constant_heads) for layer in swapped_layers(papa_lightning.load_exported_encoder(served))] == [
        2,
        2,
    ]
