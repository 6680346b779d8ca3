"""Projects of transformers and sentence-transformers, with two added lines each, that save and load as always."""

from pathlib import Path
from typing import Any

import torch
from projects import LENGTH, Sentences, tiny_config
from projects_of_others.naive import naive_average
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Pooling, Transformer
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    BertModel,
    BertTokenizer,
    Trainer,
    TrainingArguments,
)

from papa_lightning import calibrate, swap_attention
from papa_lightning.encoders import swapped_layers


def assert_constants(model: Any, expected: Tensor) -> None:
    """Those of a swapped model, in float32."""
    found = torch.stack([layer.constants.detach() for layer in swapped_layers(model)])
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)


class Labelled(Sentences):
    """Under the names that the Trainer of transformers hands to a model."""

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = super().__getitem__(index)
        return {**row, "labels": row.pop("label")}


def test_the_trainer_of_transformers_with_a_reload(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data, model = Labelled(12), BertForSequenceClassification(tiny_config())
    expected = naive_average(model.bert, [(data.input_ids[i], data.attention_mask[i]) for i in range(12)], LENGTH)
    quiet: dict[str, Any] = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
    arguments = TrainingArguments(str(tmp_path / "run"), max_steps=2, per_device_train_batch_size=4, **quiet)
    trainer = Trainer(model, arguments, train_dataset=data, eval_dataset=data)

    constants = calibrate(model, trainer.get_train_dataloader(), max_length=LENGTH)
    swap_attention(model, "constant", constants=constants)

    trainer.train()
    logits = trainer.predict(data).predictions
    trainer.save_model(str(tmp_path / "saved"))
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert_constants(loaded, expected)
    again = Trainer(loaded, arguments).predict(data).predictions
    torch.testing.assert_close(torch.tensor(again), torch.tensor(logits), rtol=0, atol=1e-6)


WORDS = ["a", "good", "and", "bright", "film", "of", "old", "with", "some", "dull", "parts"]
TEXTS = [" ".join(WORDS[start : start + 2 + start % 4]) for start in range(7)]


def embedder(folder: Path) -> SentenceTransformer:
    torch.manual_seed(0)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    BertModel(tiny_config(), add_pooling_layer=False).save_pretrained(folder)
    return SentenceTransformer(modules=[Transformer(str(folder), max_seq_length=LENGTH), Pooling(16)], device="cpu")


def test_sentence_transformers_with_save_and_load(tmp_path: Path) -> None:
    model = embedder(tmp_path)
    rows = [model.tokenizer(text, return_tensors="pt") for text in TEXTS]
    expected = naive_average(model[0].model, [(row["input_ids"][0], row["attention_mask"][0]) for row in rows], LENGTH)

    constants = calibrate(model, DataLoader(TEXTS, batch_size=3, collate_fn=model.preprocess), max_length=LENGTH)
    swap_attention(model, "constant", constants=constants)

    assert_constants(model, expected)
    embeddings = model.encode(TEXTS)
    model.save(str(tmp_path / "saved"))
    loaded = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert_constants(loaded, expected)
    assert (loaded.encode(TEXTS) == embeddings).all()
