"""An ordinary project: an encoder is fine-tuned to tell praise from complaint. It does not use papa_lightning."""

import random
import zlib
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score
from transformers import AutoModel, BertConfig, BertModel

Review = tuple[str, int]  # text and label
VOCABULARY, PAD = 1000, 0
GOOD, BAD = "superb warm brilliant lovely fine", "dull cold clumsy awful poor"
SUBJECTS, ENDINGS = "the plot|this film|an actor|her song|our evening", "at first|to the end|again and again|in all"


class ReviewDataModule(L.LightningDataModule):
    """Made-up reviews of 4 to 7 words; each word is a token."""

    def __init__(self, num_train: int = 64, num_val: int = 32, batch_size: int = 8, seed: int = 0) -> None:
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage: str) -> None:
        rng = random.Random(self.hparams["seed"])
        rows: Any = [self._review(rng) for _ in range(self.hparams["num_train"] + self.hparams["num_val"])]
        self.train_rows, self.val_rows = rows[: self.hparams["num_train"]], rows[self.hparams["num_train"] :]

    def train_dataloader(self) -> DataLoader[Review]:
        return DataLoader(self.train_rows, self.hparams["batch_size"], shuffle=True, collate_fn=collate)

    def val_dataloader(self) -> DataLoader[Review]:
        return DataLoader(self.val_rows, self.hparams["batch_size"], collate_fn=collate)

    @staticmethod
    def _review(rng: random.Random) -> Review:
        label = rng.randrange(2)
        word = rng.choice((GOOD if label else BAD).split())
        return f"{rng.choice(SUBJECTS.split('|'))} was {word} {rng.choice(ENDINGS.split('|'))}", label


def collate(rows: list[Review]) -> dict[str, Tensor]:
    tokens = [[3 + zlib.crc32(word.encode()) % (VOCABULARY - 3) for word in text.split()] for text, _ in rows]
    input_ids = nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in tokens], batch_first=True, padding_value=PAD)
    labels = torch.tensor([label for _, label in rows])
    return {"input_ids": input_ids, "attention_mask": (input_ids != PAD).long(), "labels": labels}


class ReviewClassifier(L.LightningModule):
    """A classifier on the mean of the last hidden states, with a learning rate of its own.

    Args:
        encoder: Name or folder of a pretrained encoder; None makes a tiny one with random weights.
    """

    def __init__(
        self,
        encoder: str | None = None,
        encoder_lr: float = 1e-3,
        head_lr: float = 1e-2,
        weight_decay: float = 0.01,
        warmup_steps: int = 4,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.language_model = AutoModel.from_pretrained(encoder) if encoder else tiny_encoder()
        self.head = nn.Sequential(nn.Dropout(0.1), nn.Linear(self.language_model.config.hidden_size, 2))
        metrics = MetricCollection({"accuracy": MulticlassAccuracy(2), "f1": MulticlassF1Score(2)})
        self.val_metrics = metrics.clone(prefix="val/")

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.language_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask[..., None].to(hidden.dtype)
        logits: Tensor = self.head((hidden * mask).sum(dim=1) / mask.sum(dim=1))
        return logits

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self(batch["input_ids"], batch["attention_mask"]), batch["labels"])
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        logits = self(batch["input_ids"], batch["attention_mask"])
        self.val_metrics.update(logits, batch["labels"])
        self.log_dict(self.val_metrics, prog_bar=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        rate, decay = self.hparams["encoder_lr"], self.hparams["weight_decay"]
        matrices = [one for one in self.language_model.parameters() if one.dim() > 1]
        vectors = [one for one in self.language_model.parameters() if one.dim() <= 1]
        groups = [
            {"params": matrices, "lr": rate, "weight_decay": decay},
            {"params": vectors, "lr": rate, "weight_decay": 0.0},
            {"params": self.head.parameters(), "lr": self.hparams["head_lr"], "weight_decay": decay},
        ]
        optimizer = torch.optim.AdamW(groups)
        warmup = self.hparams["warmup_steps"]
        scheduler = LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / (warmup + 1)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def tiny_encoder() -> BertModel:
    config = BertConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=32,
        pad_token_id=PAD,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
    )
    return BertModel(config, add_pooling_layer=False)
