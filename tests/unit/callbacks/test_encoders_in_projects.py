"""The callback where the encoder is inside something else, or is one of two."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from projects import LENGTH, Sentences, loaders, tiny_config, trainer
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import BertModel, BertTokenizer

from papa_lightning import ConstantAttention, PapaError, calibrate
from papa_lightning.callbacks import discover_encoder
from papa_lightning.encoders import is_calibrated, swapped_layers


def bert(seed: int = 0) -> BertModel:
    torch.manual_seed(seed)
    return BertModel(tiny_config(), add_pooling_layer=False)


def with_lora(model: nn.Module) -> nn.Module:
    return get_peft_model(model, LoraConfig(r=2, target_modules=["query", "value"], init_lora_weights=False))


def compiled(model: nn.Module) -> Any:
    return torch.compile(model, backend="eager")


class Nested(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Tensor) -> Any:
        return self.model(**inputs)


class Project(L.LightningModule):
    """A classifier whose encoder may be wrapped in anything that is called like it."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.classifier = nn.Linear(16, 2)

    def embed(self, batch: dict[str, Tensor]) -> Tensor:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        return self.encoder(**inputs).last_hidden_state[:, 0]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.classifier(self.embed(batch)), batch["label"])

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("loss", self.training_step(batch, batch_idx), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-3)


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "nested": lambda model: Nested(Nested(model)),
    "peft": with_lora,
    "compiled peft": lambda model: compiled(with_lora(model)),
}


@pytest.mark.parametrize(
    ("wrapper", "named"),
    [(wrapper, named) for wrapper in WRAPPERS for named in (False, True) if not (named and "compiled" in wrapper)],
)
def test_a_wrapped_encoder(wrapper: str, named: bool) -> None:
    model = bert()
    module = Project(WRAPPERS[wrapper](model)).eval()
    batches = list(DataLoader(Sentences(8), batch_size=4))
    want = calibrate(model, batches, LENGTH)
    callback = ConstantAttention(max_length=LENGTH, encoder="encoder" if named else None)
    trainer(callback).fit(module, **loaders())
    for layer, values in zip(swapped_layers(model), want.values, strict=True):
        torch.testing.assert_close(layer.constants.data, values)
    assert is_calibrated(model)


class SentenceProject(Project):
    def embed(self, batch: dict[str, Tensor]) -> Tensor:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        return self.encoder(inputs)["sentence_embedding"]


def test_a_sentence_transformer(tmp_path: Path) -> None:
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat"])}
    BertTokenizer(vocab=vocabulary).save_pretrained(tmp_path)
    bert().save_pretrained(tmp_path)
    module = SentenceProject(SentenceTransformer(modules=[Transformer(str(tmp_path)), Pooling(16)], device="cpu"))
    want = calibrate(module, list(DataLoader(Sentences(8), batch_size=4)), LENGTH)
    trainer(ConstantAttention(max_length=LENGTH)).fit(module, **loaders())
    for layer, values in zip(swapped_layers(module), want.values, strict=True):
        torch.testing.assert_close(layer.constants.data, values)


class TwoEncoders(L.LightningModule):
    """Queries and passages, each with an encoder of its own; the second one is wrapped."""

    def __init__(self) -> None:
        super().__init__()
        self.query_encoder, self.passage_encoder = bert(0), with_lora(bert(1))

    def score(self, batch: dict[str, Tensor]) -> Tensor:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        query = self.query_encoder(**inputs).last_hidden_state[:, 0]
        return query @ self.passage_encoder(**inputs).last_hidden_state[:, 0].T

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.score(batch), torch.arange(len(batch["label"])))

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("loss", self.training_step(batch, batch_idx), sync_dist=True)

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.score(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-3)


def two_callbacks() -> list[ConstantAttention]:
    return [
        ConstantAttention(max_length=LENGTH, encoder="query_encoder", heads=[(0, 1)]),
        ConstantAttention(max_length=LENGTH, encoder="passage_encoder", heads="all"),
    ]


def check_heads(module: TwoEncoders) -> None:
    assert [layer.constant_heads for layer in swapped_layers(module.query_encoder)] == [(1,), ()]
    assert [layer.constant_heads for layer in swapped_layers(module.passage_encoder)] == [(0, 1), (0, 1)]
    assert is_calibrated(module.query_encoder)
    assert is_calibrated(module.passage_encoder)


def test_two_encoders(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, batches = TwoEncoders().eval(), list(DataLoader(Sentences(8), batch_size=4))
    want = [calibrate(encoder, batches, LENGTH) for encoder in (module.query_encoder, module.passage_encoder)]
    fitted = trainer(*two_callbacks())
    fitted.fit(module, **loaders())
    assert fitted.global_step == 2
    check_heads(module)
    query, passage = swapped_layers(module.query_encoder), swapped_layers(module.passage_encoder)
    torch.testing.assert_close(query[0].constants.data, want[0].values[0, 1:])
    for layer, values in zip(passage, want[1].values, strict=True):
        torch.testing.assert_close(layer.constants.data, values)

    path, rows = tmp_path / "two.ckpt", DataLoader(Sentences(4, seed=2), batch_size=4)
    fitted.save_checkpoint(path)
    expected = trainer(*two_callbacks()).predict(module, rows)
    loss = trainer(*two_callbacks()).validate(module, rows, verbose=False)
    fresh = TwoEncoders()
    assert trainer(*two_callbacks()).validate(fresh, rows, ckpt_path=path, verbose=False, weights_only=True) == loss
    check_heads(fresh)
    found = trainer(*two_callbacks()).predict(TwoEncoders(), rows, ckpt_path=path, weights_only=True)
    assert expected is not None
    assert found is not None
    assert torch.equal(found[0], expected[0])


def test_resuming_two_encoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The constants come back with the checkpoint: nothing is calibrated again."""
    module = TwoEncoders()
    first = trainer(*two_callbacks())
    first.fit(module, **loaders())
    first.save_checkpoint(tmp_path / "two.ckpt")
    monkeypatch.setattr(ConstantAttention, "calibrate", lambda *_: pytest.fail("calibrated again"))
    resumed = TwoEncoders()
    second = trainer(*two_callbacks(), max_epochs=2)
    second.fit(resumed, **loaders(), ckpt_path=tmp_path / "two.ckpt", weights_only=True)
    assert second.global_step == 4
    check_heads(resumed)
    for old, new in zip(swapped_layers(module.passage_encoder), swapped_layers(resumed.passage_encoder), strict=True):
        assert torch.equal(old.constants, new.constants)


def test_two_encoders_without_a_name() -> None:
    match = r"TwoEncoders holds several encoders \(query_encoder, passage_encoder.*\): name one with encoder="
    with pytest.raises(PapaError, match=match):
        trainer(ConstantAttention(max_length=LENGTH)).fit(TwoEncoders(), **loaders())


def test_one_encoder_under_two_names() -> None:
    module = Project(bert())
    module.teacher = Nested(module.encoder)
    assert discover_encoder(module) is module.encoder
    assert discover_encoder(module, "teacher.model") is module.encoder
    trainer(ConstantAttention(max_length=LENGTH)).fit(module, **loaders())
    assert is_calibrated(module.encoder)
