"""Lightning projects that know nothing of the package, with two added lines each: averages are those of their rows."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LightningCLI
from projects import LENGTH, Sentences, tiny_config
from projects_of_others.naive import naive_average
from torch import Tensor, nn
from torch.utils.data import DataLoader, SubsetRandomSampler
from transformers import BertConfig, BertModel, EncoderDecoderConfig, EncoderDecoderModel

from papa_lightning import AttentionConstants, ConstantAttention

QUIET: dict[str, Any] = {
    "accelerator": "cpu", "devices": 1, "max_epochs": 1, "enable_progress_bar": False,
    "enable_model_summary": False, "enable_checkpointing": False,
}  # fmt: skip


def rows(data: Sentences, numbers: Any = None) -> list[tuple[Tensor, Tensor]]:
    chosen = range(len(data)) if numbers is None else numbers
    return [(data.input_ids[number], data.attention_mask[number]) for number in chosen]


def assert_average(callback: ConstantAttention, expected: Tensor, sequences: int) -> None:
    """Of the file that the run wrote."""
    assert callback.constants_path is not None
    constants = AttentionConstants.load(callback.constants_path)
    assert constants.metadata["sequences"] == sequences
    torch.testing.assert_close(constants.values.double(), expected, rtol=0, atol=1e-6)


def test_a_classifier_of_pytorch_lightning(tmp_path: Path) -> None:
    pl = pytest.importorskip("pytorch_lightning")

    class Classifier(pl.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.bert = BertModel(tiny_config(), add_pooling_layer=False)
            self.head = nn.Linear(16, 2)

        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
            states = self.bert(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
            loss = F.cross_entropy(self.head(states[:, 0]), batch["label"])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    data, module = Sentences(10), Classifier()
    expected = naive_average(module.bert, rows(data), LENGTH)
    callback = ConstantAttention(max_length=LENGTH)
    trainer = pl.Trainer(callbacks=[callback], default_root_dir=tmp_path, **QUIET)
    trainer.fit(module, DataLoader(data, batch_size=4, shuffle=True))
    assert_average(callback, expected, 10)
    torch.testing.assert_close(
        module.bert.encoder.layer[0].attention.self.papa.constants.detach().double(), expected[0], rtol=0, atol=1e-6
    )


@dataclass
class Features:
    """A batch of the second project."""

    tokens: Tensor
    present: Tensor
    labels: Tensor


class ObjectData(L.LightningDataModule):
    """Batches that are objects."""

    def train_dataloader(self) -> DataLoader[Any]:
        def collate(entries: list[dict[str, Tensor]]) -> Features:
            columns = [torch.stack([entry[name] for entry in entries]) for name in entries[0]]
            return Features(*columns)

        return DataLoader(Sentences(9), batch_size=4, collate_fn=collate)


class ManualModule(L.LightningModule):
    """Optimises by hand, two steps a batch, and counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.encoder = BertModel(tiny_config(), add_pooling_layer=False)
        self.head = nn.Linear(16, 2)
        self.steps_of_mine = 0

    def training_step(self, batch: Features, batch_idx: int) -> None:
        optimizer = self.optimizers()
        for part in (slice(0, 2), slice(2, None)):
            if len(batch.labels[part]) == 0:
                continue
            states = self.encoder(batch.tokens[part], batch.present[part]).last_hidden_state[:, 0]
            loss = F.cross_entropy(self.head(states), batch.labels[part])
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            self.steps_of_mine += 1
            self.log("loss", loss)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_command_line_with_objects_as_batches_and_manual_optimisation(tmp_path: Path) -> None:
    arguments = {f"trainer.{name}": value for name, value in QUIET.items()} | {
        "seed_everything": 3,
        "trainer.default_root_dir": str(tmp_path),
        "trainer.callbacks": [
            {"class_path": "papa_lightning.ConstantAttention", "init_args": {"max_length": LENGTH, "heads": [[0, 1]]}}
        ],
    }
    command = LightningCLI(ManualModule, ObjectData, args=arguments, run=False, save_config_callback=None)
    expected = naive_average(command.model.encoder, rows(Sentences(9)), LENGTH)
    command.trainer.fit(command.model, datamodule=command.datamodule)
    (callback,) = (one for one in vars(command.trainer)["callbacks"] if isinstance(one, ConstantAttention))
    assert_average(callback, expected, 9)
    assert command.model.steps_of_mine == 5
    assert command.trainer.global_step == 5


class Summariser(L.LightningModule):
    """An encoder and a decoder in one model of transformers."""

    def __init__(self) -> None:
        super().__init__()
        sizes = tiny_config().to_dict()
        decoder = BertConfig(**{**sizes, "is_decoder": True, "add_cross_attention": True})
        self.model = EncoderDecoderModel(EncoderDecoderConfig.from_encoder_decoder_configs(tiny_config(), decoder))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        tokens = batch["input_ids"]
        output = self.model(input_ids=tokens, attention_mask=batch["attention_mask"], decoder_input_ids=tokens[:, :4])
        loss: Tensor = F.cross_entropy(output.logits.flatten(0, 1), tokens[:, 1:5].flatten())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def test_the_encoder_of_an_encoder_decoder_model(tmp_path: Path) -> None:
    data, module = Sentences(8), Summariser()
    expected = naive_average(module.model.encoder, rows(data), LENGTH)
    callback = ConstantAttention(max_length=LENGTH, encoder="model.encoder")
    L.Trainer(callbacks=[callback], default_root_dir=tmp_path, **QUIET).fit(module, DataLoader(data, batch_size=3))
    assert_average(callback, expected, 8)


class BiEncoder(L.LightningModule):
    """Questions and passages through towers of their own, passages twice: relevant ones and others."""

    def __init__(self) -> None:
        super().__init__()
        self.question = BertModel(tiny_config(), add_pooling_layer=False)
        self.passage = BertModel(tiny_config(), add_pooling_layer=False)

    def embed(self, tower: BertModel, batch: dict[str, Tensor]) -> Tensor:
        states: Tensor = tower(**{n: batch[n] for n in ("input_ids", "attention_mask")}).last_hidden_state
        return states[:, 0]

    def training_step(self, batch: tuple[dict[str, Tensor], ...], batch_idx: int) -> Tensor:
        question, relevant, other = batch
        anchor = self.embed(self.question, question)
        near, far = self.embed(self.passage, relevant), self.embed(self.passage, other)
        return F.triplet_margin_loss(anchor, near, far)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


class Triples(torch.utils.data.Dataset[Any]):
    """Three sentences each."""

    def __init__(self) -> None:
        self.parts = [Sentences(7, seed=seed) for seed in range(3)]

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> tuple[dict[str, Tensor], ...]:
        return tuple(part[index] for part in self.parts)


def test_each_tower_of_a_bi_encoder_gets_what_it_sees(tmp_path: Path) -> None:
    data, module = Triples(), BiEncoder()
    questions = naive_average(module.question, rows(data.parts[0]), LENGTH)
    passages = naive_average(module.passage, rows(data.parts[1]) + rows(data.parts[2]), LENGTH)
    callbacks = [ConstantAttention(LENGTH, encoder="question"), ConstantAttention(LENGTH, encoder="passage")]
    trainer = L.Trainer(callbacks=callbacks, default_root_dir=tmp_path, **QUIET)
    trainer.fit(module, DataLoader(data, batch_size=3, shuffle=True))
    assert callbacks[0].constants_path != callbacks[1].constants_path
    assert_average(callbacks[0], questions, 7)
    assert_average(callbacks[1], passages, 14)


class Folded(L.LightningModule):
    """One model a fold."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.bert = BertModel(tiny_config(), add_pooling_layer=False)
        self.head = nn.Linear(16, 2)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        label = batch.pop("label")
        return F.cross_entropy(self.head(self.bert(**batch).last_hidden_state[:, 0]), label)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        batch.pop("label")
        self.bert(**batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def test_the_folds_of_a_cross_validation_with_samplers(tmp_path: Path) -> None:
    data = Sentences(9)
    for fold in range(3):
        held_out = list(range(fold, 9, 3))
        kept = [number for number in range(9) if number not in held_out]
        module = Folded()
        expected = naive_average(module.bert, rows(data, kept), LENGTH)
        callback = ConstantAttention(max_length=LENGTH)
        trainer = L.Trainer(callbacks=[callback], default_root_dir=tmp_path, **QUIET)
        trainer.fit(
            module,
            DataLoader(data, batch_size=2, sampler=SubsetRandomSampler(kept)),
            DataLoader(data, batch_size=2, sampler=SubsetRandomSampler(held_out)),
        )
        assert_average(callback, expected, 6)
