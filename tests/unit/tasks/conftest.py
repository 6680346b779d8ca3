"""A tiny encoder with a tokenizer that can mask, and a quiet Trainer."""

import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.ascii_lowercase, *string.digits]


@pytest.fixture(scope="session")
def letters_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A BERT of 2 layers and 4 heads that reads letters."""
    folder: Path = tmp_path_factory.mktemp("letters")
    (folder / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=20).save_pretrained(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=20, **sizes)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def quiet_trainer() -> Callable[..., L.Trainer]:
    def make(**arguments: Any) -> L.Trainer:
        names = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
        return L.Trainer(**({**dict.fromkeys(names, False), "accelerator": "cpu", "devices": 1} | arguments))

    return make
