"""Embeddings: pooling with holes, packing, gradients, and settings that a folder decides on."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification, BertModel

from papa_lightning.calibration import calibrate
from papa_lightning.embeddings import Embedder, EmbeddingSettings, pool
from papa_lightning.encoders import Packing, swap_attention
from papa_lightning.errors import PapaError

SIZES = {"vocab_size": 30, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37}


@pytest.fixture
def encoder() -> BertModel:
    torch.manual_seed(0)
    return BertModel(BertConfig(max_position_embeddings=20, **SIZES)).eval()


def batch_of(*lengths: int, length: int = 8, seed: int = 0) -> dict[str, Tensor]:
    """Random tokens, padded to a length."""
    ids = torch.randint(1, 30, (len(lengths), length), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": (torch.arange(length) < torch.tensor(lengths)[:, None]).long()}


@pytest.mark.parametrize(("pooling", "wanted"), [("mean", [4.0, 7.0, 0.0]), ("class_token", [1.0, 6.0, 0.0])])
def test_pooling_reads_real_tokens_only(pooling, wanted) -> None:
    hidden = torch.tensor([[1.0, 50.0, 4.0, 7.0], [50.0, 6.0, 8.0, 50.0], [0.0, 50.0, 50.0, 50.0]])[..., None]
    mask = torch.tensor([[1, 0, 1, 1], [0, 1, 1, 0], [0, 0, 0, 0]])
    assert pool(pooling, hidden, mask).squeeze(1).tolist() == wanted
    assert pool("last_token", hidden, mask)[:2].squeeze(1).tolist() == [7.0, 8.0]


@pytest.mark.parametrize("pooling", ["mean", "class_token", "last_token"])
@pytest.mark.parametrize("swapped", [False, True])
def test_packing_makes_no_difference(encoder, pooling, swapped) -> None:
    batches = [batch_of(3, 8, 1), batch_of(5, 2, length=6, seed=1), batch_of(4, seed=2)]
    if swapped:
        swap_attention(encoder, "constant", constants=calibrate(encoder, batches, max_length=8))
    packed = Embedder(encoder, pooling, packing=Packing(tokens_per_batch=8)).embed_rows(batches)
    plain = Embedder(encoder, pooling, packing=Packing(False)).embed_rows(batches)
    assert packed.shape == (6, 32)
    assert packed.dtype == torch.float32
    torch.testing.assert_close(packed, plain, rtol=0, atol=2e-6)
    torch.testing.assert_close(packed.norm(dim=1), torch.ones(6))


def test_a_mean_is_over_the_states_of_the_encoder(encoder) -> None:
    batch = batch_of(3, 8)
    embedder = Embedder(encoder, "mean", normalize=False)
    states = encoder(**batch).last_hidden_state
    torch.testing.assert_close(embedder.embed(batch)[0], states[0, :3].mean(dim=0), rtol=0, atol=2e-6)


def test_rows_are_embedded_in_evaluation_mode_without_gradients(encoder) -> None:
    wanted = Embedder(encoder).embed_rows([batch_of(3, 8)])
    encoder.train()
    found = Embedder(encoder).embed_rows([batch_of(3, 8)])
    assert encoder.training
    assert not found.requires_grad
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-6)


def test_gradients_flow_through_packed_batches(encoder) -> None:
    batch, gradients = batch_of(3, 8, 5), []
    for packing in (Packing(), Packing(False)):
        encoder.zero_grad()
        Embedder(encoder, packing=packing).embed(batch)[:, 0].sum().backward()
        gradients.append(encoder.encoder.layer[0].output.dense.weight.grad.clone())
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-6)
    assert gradients[0].abs().max() > 0


def test_the_encoder_of_a_model_with_a_head_is_found() -> None:
    model = BertForSequenceClassification(BertConfig(**SIZES)).eval()
    found = Embedder(model, normalize=False).embed_rows([batch_of(3, 8)])
    inner = Embedder(model.bert, normalize=False).embed_rows([batch_of(3, 8)])
    assert torch.equal(found, inner)


def test_half_precision_is_pooled_in_float32(encoder) -> None:
    found = Embedder(encoder.bfloat16(), packing=Packing(False)).embed(batch_of(3, 8))
    assert found.dtype == torch.float32


def test_settings_come_from_the_folder_where_none_are_given(tmp_path: Path) -> None:
    assert EmbeddingSettings().of(str(tmp_path)) == EmbeddingSettings("mean", True)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    entries = [{"idx": 0, "name": "0", "path": path, "type": f"sentence_transformers.{kind}"} for path, kind in modules]
    (tmp_path / "modules.json").write_text(json.dumps(entries))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    assert EmbeddingSettings().of(str(tmp_path)) == EmbeddingSettings("class_token", False)
    assert EmbeddingSettings("mean").of(str(tmp_path)) == EmbeddingSettings("mean", False)
    assert EmbeddingSettings(normalize=True).of(str(tmp_path)) == EmbeddingSettings("class_token", True)
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(PapaError, match="has the pooling 'max'"):
        EmbeddingSettings().of(str(tmp_path))
    assert EmbeddingSettings("mean", True).of(str(tmp_path)) == EmbeddingSettings("mean", True)


def test_what_cannot_be_embedded_is_refused(encoder) -> None:
    with pytest.raises(PapaError, match="pooling is 'max', but must be one of"):
        Embedder(encoder, "max")
    with pytest.raises(PapaError, match="normalize is 1, but must be true or false"):
        EmbeddingSettings(normalize=1)
    with pytest.raises(PapaError, match="encoder is a Linear: pass a PreTrainedModel"):
        Embedder(torch.nn.Linear(2, 2))
    with pytest.raises(PapaError, match="batch has no attention_mask; its entries are input_ids"):
        Embedder(encoder).embed({"input_ids": torch.ones(1, 2, dtype=torch.long)})
    with pytest.raises(PapaError, match="batches is empty"):
        Embedder(encoder).embed_rows([])
    with torch.no_grad():
        encoder.embeddings.word_embeddings.weight[3] = torch.nan
    batch = batch_of(3, 8)
    batch["input_ids"] = batch["input_ids"].fill_(1).index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(3))
    with pytest.raises(PapaError, match="embedding of row 1 that is NaN"):
        Embedder(encoder).embed_rows([batch])
