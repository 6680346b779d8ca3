import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModel,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DebertaV2Config,
    DebertaV2Model,
    ElectraConfig,
    ElectraModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5EncoderModel,
    T5Model,
    ViTConfig,
    ViTModel,
)

from papa_lightning.encoders import accepted_inputs, position_limit
from papa_lightning.encoders.loading import load_encoder
from papa_lightning.errors import PapaError, UnsupportedEncoderError

SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "max_position_embeddings": 20,
}
MODELS = {
    "bert": lambda: BertModel(BertConfig(**SIZES)),
    "roberta": lambda: RobertaModel(RobertaConfig(pad_token_id=1, type_vocab_size=1, **SIZES)),
    "electra": lambda: ElectraModel(ElectraConfig(embedding_size=32, **SIZES)),
    "deberta-v2": lambda: DebertaV2Model(DebertaV2Config(**SIZES)),
}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    # An unknown name is asked for several times, with pauses, where there is no network.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def bert_folder(tmp_path: Path) -> Path:
    MODELS["bert"]().save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


@pytest.mark.parametrize("family", sorted(MODELS))
def test_hidden_states_of_the_saved_model_without_its_pooler(family: str, tmp_path: Path) -> None:
    saved = MODELS[family]().eval()
    saved.save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path))
    assert not encoder.training
    assert getattr(encoder, "pooler", None) is None
    inputs = {"input_ids": torch.arange(2, 12).view(1, 10), "attention_mask": torch.ones(1, 10, dtype=torch.long)}
    expected, actual = (model(**inputs, output_hidden_states=True).hidden_states for model in (saved, encoder))
    assert len(actual) == 3
    for level, other in zip(actual, expected, strict=True):
        assert torch.equal(level, other)


def test_encoder_of_a_model_with_a_task_head_in_half_precision(tmp_path: Path) -> None:
    model = BertForSequenceClassification(BertConfig(**SIZES)).half()
    model.save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path))
    assert isinstance(encoder, BertModel)
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("family", "positions", "segments"),
    [("bert", 20, True), ("roberta", 18, False), ("electra", 20, True), ("deberta-v2", 20, False)],
)
def test_positions_and_inputs(family: str, positions: int, segments: bool) -> None:
    encoder = MODELS[family]()
    assert position_limit(encoder) == positions
    assert ("token_type_ids" in accepted_inputs(encoder)) == segments


def test_roberta_takes_as_many_tokens_as_are_promised() -> None:
    encoder = MODELS["roberta"]()
    encoder(input_ids=torch.full((1, 18), 5))
    with pytest.raises((IndexError, RuntimeError)):
        encoder(input_ids=torch.full((1, 19), 5))


@pytest.mark.parametrize("name", ["no/such-encoder", "nosuchencoder", "not a name//", "", "/no/such/folder"])
def test_unknown_name(name: str) -> None:
    with pytest.raises(PapaError, match=r"cannot be loaded: .*the name of an encoder on the hub"):
        load_encoder(name)


@pytest.mark.parametrize(
    "config", ["{", '{"model_type": "nope"}', '{"auto_map": {"AutoModel": "code.Model"}, "model_type": "nope"}', None]
)
def test_folder_that_is_no_encoder(config: str | None, tmp_path: Path) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(PapaError, match="cannot be loaded"):
        load_encoder(str(tmp_path))


@pytest.mark.parametrize("damage", ["missing", "broken"])
def test_weights_that_cannot_be_read(damage: str, bert_folder: Path) -> None:
    weights = bert_folder / "model.safetensors"
    weights.unlink() if damage == "missing" else weights.write_bytes(b"not safetensors")
    with pytest.raises(PapaError, match="cannot be loaded"):
        load_encoder(str(bert_folder))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 3}, r"no fitting weights for 16 of its parameters, 'encoder.layer.2"),
        ({"hidden_size": 64}, r"no fitting weights for \d+ of its parameters, 'embeddings"),
    ],
)
def test_weights_that_do_not_belong_to_the_config(
    change: dict[str, int], message: str, bert_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(bert_folder, tmp_path / "changed")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(PapaError, match=message):
        load_encoder(str(folder))


def test_a_pooler_that_was_left_out_is_not_reported(
    bert_folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    AutoModel.from_pretrained(bert_folder, add_pooling_layer=False)
    assert "LOAD REPORT" in caplog.text, "this transformers has other words: change _without_load_report in loading.py"
    caplog.clear()
    load_encoder(str(bert_folder))
    assert caplog.records == []


@pytest.mark.parametrize("saved", [T5Model, T5EncoderModel])
def test_of_an_encoder_decoder_the_encoder_is_taken(tmp_path: Path, saved: type[PreTrainedModel]) -> None:
    sizes = {"vocab_size": 40, "d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    config = T5Config(**sizes, **{"decoder_start_token_id": 0})
    model = saved(config)
    model.save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path))
    assert list(encoder.state_dict()) == list(model.get_encoder().state_dict())
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, model.get_encoder().state_dict()[name])


def test_models_of_images_are_refused(tmp_path: Path) -> None:
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=32)
    ViTModel(config).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedEncoderError, match=r"\(vit\) has no vocab_size"):
        load_encoder(str(tmp_path))
