"""The callback in projects with images, causal models and encoder-decoders."""

from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from projects import LENGTH, Sentences, trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import (
    AlbertConfig,
    AlbertModel,
    BartConfig,
    BartModel,
    GPT2Config,
    GPT2Model,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)

from papa_lightning import ConstantAttention, PapaError, calibrate
from papa_lightning.encoders import find_encoder, swapped_layers

TOKENS = 10  # of an image: 3 x 3 patches and the class token
assert_close = torch.testing.assert_close


class Pictures(Dataset[dict[str, Tensor]]):
    """Random pictures of 12 x 12 pixels; the label is whether the left half is the brighter one."""

    def __init__(self, number: int, size: int = 12) -> None:
        self.pixels = torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        picture = self.pixels[index]
        left, right = picture.chunk(2, dim=-1)
        return {"pixel_values": picture, "labels": (left.mean() > right.mean()).long()}


class PictureDataModule(L.LightningDataModule):
    """A tiny data module for images, as users have it."""

    def __init__(self, size: int = 12) -> None:
        super().__init__()
        self.size = size

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return DataLoader(Pictures(8, self.size), batch_size=3, shuffle=True)

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return DataLoader(Pictures(4, self.size), batch_size=4)


class PictureClassifier(L.LightningModule):
    """A fine-tuned vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "image_size": 12, "patch_size": 4}
        sizes |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_labels": 2}
        config = ViTConfig(**sizes)
        self.model = ViTForImageClassification(config)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.model(**batch).loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("loss", self.model(**batch).loss)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=1e-2)


@pytest.mark.parametrize("max_length", [None, TOKENS])
def test_images_need_no_mask_and_no_length(max_length: int | None) -> None:
    module = PictureClassifier()
    pictures = DataLoader(Pictures(8), batch_size=5)
    expected = calibrate(module.model, pictures, max_length=TOKENS)
    assert expected.pair_counts.eq(8).all()
    assert_close(expected.values.sum(-1), torch.ones(2, 2, TOKENS))  # nothing is padding, so rows are whole
    trainer(ConstantAttention(max_length=max_length)).fit(module, datamodule=PictureDataModule())
    for layer, values in zip(swapped_layers(module.model), expected.values, strict=True):
        assert_close(layer.constants.detach(), values, atol=1e-6, rtol=0)


def test_another_length_than_that_of_the_images_is_refused() -> None:
    with pytest.raises(PapaError, match=r"max_length is 12, but must be 10, the number of tokens .* of an image"):
        trainer(ConstantAttention(max_length=12)).fit(PictureClassifier(), datamodule=PictureDataModule())


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(PapaError, match=r"pixel_values of \(16, 16\) pixels, but the encoder takes \(12, 12\)"):
        trainer(ConstantAttention(), num_sanity_val_steps=0).fit(PictureClassifier(), datamodule=PictureDataModule(16))


@pytest.mark.parametrize("batch", [{"images": torch.zeros(1, 3, 12, 12)}, {"pixel_values": torch.zeros(3, 12, 12)}])
def test_batches_without_images(batch: dict[str, Tensor]) -> None:
    with pytest.raises(PapaError, match=r"pixel_values of shape or type .*\(batch, channels, height, width\)"):
        calibrate(PictureClassifier().model, [batch], max_length=TOKENS)


class LastTokenClassifier(L.LightningModule):
    """A classifier on the last position of any model of text."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model, self.classifier = model, nn.Linear(16, 2)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        outputs = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        return F.cross_entropy(self.classifier(outputs.last_hidden_state[:, -1]), batch["label"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=1e-2)


def gpt2() -> PreTrainedModel:
    return GPT2Model(GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=20))


def bart() -> PreTrainedModel:
    sides = {f"{side}_{name}": 2 for side in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    ffn = {"encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
    return BartModel(BartConfig(vocab_size=40, d_model=16, max_position_embeddings=20, **sides, **ffn))


def albert() -> PreTrainedModel:
    sizes = {"hidden_size": 16, "embedding_size": 8, "intermediate_size": 24, "max_position_embeddings": 20}
    return AlbertModel(AlbertConfig(vocab_size=40, num_hidden_layers=2, num_attention_heads=2, **sizes))


@pytest.mark.parametrize("make", [gpt2, bart, albert])
def test_other_models_of_text(make: Any) -> None:
    torch.manual_seed(0)
    module = LastTokenClassifier(make())
    expected = calibrate(module.model, DataLoader(Sentences(8), batch_size=3), max_length=LENGTH)
    heads = [(0, 1), (1, 0), (1, 1)]
    trainer(ConstantAttention(max_length=LENGTH, heads=heads)).fit(module, DataLoader(Sentences(8), batch_size=4))
    layers = swapped_layers(module.model)
    assert [layer.constant_heads for layer in layers] == [(1,), (0, 1)]
    assert_close(layers[1].constants.detach(), expected.values[1], atol=1e-6, rtol=0)
    # The rest of an encoder-decoder is as it was.
    everywhere, inside = (
        sum(name.endswith(".papa") for name, _ in part.named_modules())
        for part in (module.model, find_encoder(module.model))
    )
    assert everywhere == inside > 0
