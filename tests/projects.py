"""Somebody else's Lightning project: a module and data that know nothing of papa_lightning."""

from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import BertConfig, BertModel

LENGTH = 12


def tiny_config(**changes: Any) -> BertConfig:
    sizes: dict[str, Any] = {
        "vocab_size": 40,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 20,
    }
    return BertConfig(**{**sizes, **changes})


class Sentences(Dataset[dict[str, Tensor]]):
    """Random sentences of 4 to 12 tokens; the label is whether the first token is in the upper half."""

    def __init__(self, number: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.input_ids = torch.randint(1, 40, (number, LENGTH), generator=generator)
        ends = torch.randint(4, LENGTH + 1, (number, 1), generator=generator)
        self.attention_mask = (torch.arange(LENGTH) < ends).long()

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = self.input_ids[index]
        return {"input_ids": ids, "attention_mask": self.attention_mask[index], "label": (ids[0] >= 20).long()}


class Classifier(L.LightningModule):
    """A classifier on the first token of a fine-tuned BERT."""

    def __init__(self, seed: int = 0, **config: Any) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.bert = BertModel(tiny_config(**config), add_pooling_layer=False)
        self.classifier = nn.Linear(16, 2)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch), batch["label"])
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        accuracy = (self(batch).argmax(dim=-1) == batch["label"]).float().mean()
        self.log("accuracy", accuracy, sync_dist=True)

    test_step = validation_step

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self(batch)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        hidden = self.bert(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        return self.classifier(hidden[:, 0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-3)


def loaders(number: int = 8, batch_size: int = 4) -> dict[str, DataLoader[Any]]:
    return {
        "train_dataloaders": DataLoader(Sentences(number), batch_size=batch_size, shuffle=True),
        "val_dataloaders": DataLoader(Sentences(4, seed=1), batch_size=4),
    }


def trainer(*callbacks: L.Callback, **arguments: Any) -> L.Trainer:
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
    }
    return L.Trainer(callbacks=list(callbacks), **{**settings, **arguments})
