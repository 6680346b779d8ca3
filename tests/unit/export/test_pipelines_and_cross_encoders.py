"""Pipelines of transformers and cross encoders of sentence-transformers with swapped and exported encoders."""

from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import CrossEncoder
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    BertTokenizer,
    pipeline,
)

from papa_lightning import (
    AttentionConstants,
    PapaError,
    export_encoder,
    load_exported_encoder,
    swap_attention,
)
from papa_lightning.encoders import is_calibrated, swapped_layers

LENGTH = 16
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "sat", "on", "the", "mat"]
TEXT = "a cat sat on the [MASK]"
PAIRS = [("a cat sat", "the mat"), ("the cat", "a cat sat on the mat"), ("cat " * 20, "mat")]
#: Pipeline -> the auto class of its model, and how it is told to cut texts.
PIPELINES: dict[str, tuple[Any, dict[str, Any]]] = {
    "feature-extraction": (AutoModel, {"tokenize_kwargs": {"truncation": True}}),
    "text-classification": (AutoModelForSequenceClassification, {"truncation": True}),
    "token-classification": (AutoModelForTokenClassification, {}),
    "fill-mask": (AutoModelForMaskedLM, {"tokenizer_kwargs": {"truncation": True}}),
}


def tokenizer() -> BertTokenizer:
    return BertTokenizer(vocab={word: number for number, word in enumerate(WORDS)}, model_max_length=LENGTH)


def make(auto: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 16}
    model = auto.from_config(BertConfig(vocab_size=len(WORDS), initializer_range=0.5, **sizes, **options))
    return model.eval()


def swap(model: nn.Module) -> None:
    """Three of four heads are constant."""
    values = torch.rand(2, 2, LENGTH, LENGTH, generator=torch.Generator().manual_seed(0)).softmax(dim=-1)
    constants = AttentionConstants(values, torch.ones(LENGTH, LENGTH))
    swap_attention(model, "constant", constants=constants, heads=[(0, 1), (1, 0), (1, 1)])


def numbers(result: Any) -> Tensor:
    """The numbers of the result of a pipeline."""
    return torch.tensor([float(one["score"]) if isinstance(one, dict) else one for one in result])


@pytest.mark.parametrize("task", PIPELINES)
def test_pipelines(task: str, tmp_path: Path) -> None:
    auto, cut = PIPELINES[task]
    model = make(auto)
    plain = numbers(pipeline(task, model=model, tokenizer=tokenizer())(TEXT))
    swap(model)
    pipe = pipeline(task, model=model, tokenizer=tokenizer(), **cut)
    found = numbers(pipe(TEXT))
    assert not torch.allclose(found, plain, atol=1e-3)
    assert pipe(f"{TEXT} {'cat ' * 40}")
    if task != "token-classification":  # which cuts by itself
        with pytest.raises(PapaError, match=f"tokens long, but the constants are for max_length {LENGTH}"):
            pipeline(task, model=model, tokenizer=tokenizer())(f"{TEXT} {'cat ' * 40}")
    pipe.save_pretrained(str(tmp_path / "saved"))
    loaded = pipeline(task, model=str(tmp_path / "saved"), **cut)
    assert is_calibrated(loaded.model)
    assert torch.equal(numbers(loaded(TEXT)), found)


def test_pipeline_with_an_exported_encoder(tmp_path: Path) -> None:
    model = make(AutoModelForSequenceClassification)
    swap(model)
    found = numbers(pipeline("text-classification", model=model, tokenizer=tokenizer())(TEXT))
    model.bert = load_exported_encoder(export_encoder(model, tmp_path / "exported"))
    pipe = pipeline("text-classification", model=model, tokenizer=tokenizer())
    assert torch.equal(numbers(pipe(TEXT)), found)
    pipe.save_pretrained(str(tmp_path / "saved"))
    loaded = pipeline("text-classification", model=str(tmp_path / "saved"))
    assert loaded.model.bert.encoder.layer[1].attention.self.query.weight.numel() == 0
    assert torch.equal(numbers(loaded(TEXT)), found)


@pytest.fixture
def reranker(tmp_path: Path) -> CrossEncoder:
    make(AutoModelForSequenceClassification, num_labels=1).save_pretrained(tmp_path / "reranker")
    tokenizer().save_pretrained(tmp_path / "reranker")
    return CrossEncoder(str(tmp_path / "reranker"), device="cpu")


def scores(model: CrossEncoder) -> Tensor:
    return torch.as_tensor(model.predict(PAIRS, convert_to_tensor=True))


def test_cross_encoder(reranker: CrossEncoder, tmp_path: Path) -> None:
    plain = scores(reranker)
    swap(reranker.model)
    found = scores(reranker)
    assert not torch.allclose(found, plain, atol=1e-3)
    ranked = reranker.rank("a cat sat", ["the mat", "a cat sat on the mat"])
    assert {one["corpus_id"] for one in ranked} == {0, 1}
    reranker.save(str(tmp_path / "saved"))
    loaded = CrossEncoder(str(tmp_path / "saved"), device="cpu")
    assert torch.equal(scores(loaded), found)
    assert loaded.max_seq_length == LENGTH
    loaded.model.bert = load_exported_encoder(export_encoder(reranker.model, tmp_path / "exported"))
    torch.testing.assert_close(scores(loaded), found)
    loaded.save(str(tmp_path / "again"))
    again = CrossEncoder(str(tmp_path / "again"), device="cpu")
    torch.testing.assert_close(scores(again), found)
    assert len(swapped_layers(again.model)) == 2
