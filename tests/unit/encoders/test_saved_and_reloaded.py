"""A swapped encoder that save_pretrained wrote is swapped when transformers reads it."""

import copy
import json
import logging

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertLMHeadModel,
    BertModel,
    EncoderDecoderModel,
    LlamaForCausalLM,
)
from transformers.quantizers import auto
from unit.encoders.tiny_encoders import PARTIAL, build, make_config, make_constants, make_inputs, randomize, run

from papa_lightning import AttentionConstants, PapaError, calibrate, gate_logits, restore_attention, swap_attention
from papa_lightning.calibration import calibrate_compact
from papa_lightning.encoders import LostSwapWarning, is_calibrated, load_constants, swapped_layers

KINDS = {
    "constant": {"heads": PARTIAL},
    "gated": {},
    "folded": {},
    "shared": {"options": {"matrix": "dynamic"}, "constants": None},
    "aft_local": {"options": {"window": 3}},
    "aft_conv": {"options": {"window": 3}, "constants": None},
    "additive": {"constants": None},
    ("constant", "dynamic", "aft_full"): {},
}


def outputs(model):
    return run(model, make_inputs()).last_hidden_state


def close(found, expected):
    """But for roundings: weights that were read lie at other addresses, and products of matrices depend on that."""
    return torch.allclose(found, expected, atol=2e-2 if found.dtype == torch.bfloat16 else 1e-5)


def swapped(kind="constant", **others):
    model = others.pop("model", None) or build("bert", dtype=torch.float32)
    arguments = {"constants": make_constants(dtype=torch.float32), **KINDS.get(kind, {}), **others}
    if kind == "folded":
        shared = arguments["constants"].values[:, :1].repeat(1, 4, 1, 1)
        arguments["constants"] = AttentionConstants(shared, torch.ones(10, 10))
    if arguments["constants"] is None:
        arguments["max_length"] = 10
    swap_attention(model, list(kind) if isinstance(kind, tuple) else kind, **arguments)
    with torch.no_grad():
        for layer in swapped_layers(model):
            for parameter in layer.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.rand(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model


def note(folder):
    return json.loads((folder / "config.json").read_text()).get("quantization_config")


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_kind_comes_back(kind, tmp_path):
    model = swapped(kind)
    model.save_pretrained(tmp_path / "once")
    found = note(tmp_path / "once")
    assert [layer["kind"] for layer in found["layers"]] == [layer.kind for layer in swapped_layers(model)]
    assert [layer["heads"] for layer in found["layers"]] == [list(one.constant_heads) for one in swapped_layers(model)]
    assert found["max_length"] == 10
    loaded = AutoModel.from_pretrained(tmp_path / "once")
    assert close(outputs(loaded), outputs(model))
    state = loaded.state_dict()
    assert list(state) == list(model.state_dict())
    assert all(torch.equal(state[name], held) for name, held in model.state_dict().items())
    assert [one.requires_grad for one in loaded.parameters()] == [one.requires_grad for one in model.parameters()]
    assert not hasattr(loaded.config, "quantization_config")
    assert not getattr(loaded, "is_quantized", False)
    loaded.save_pretrained(tmp_path / "twice")
    assert note(tmp_path / "twice") == found
    assert close(outputs(AutoModel.from_pretrained(tmp_path / "twice")), outputs(model))
    assert close(outputs(restore_attention(loaded)), outputs(restore_attention(model)))
    loaded.save_pretrained(tmp_path / "plain")
    assert note(tmp_path / "plain") is None
    assert swapped_layers(AutoModel.from_pretrained(tmp_path / "plain")) == []


def test_compact_constants_come_back(tmp_path):
    model, batch = build("bert", dtype=torch.float32), make_inputs()
    swap_attention(model, "compact", constants=calibrate_compact(model, [batch], max_length=10))
    model.save_pretrained(tmp_path)
    assert close(outputs(AutoModel.from_pretrained(tmp_path)), outputs(model))


def test_an_encoder_that_waits_waits_again(tmp_path):
    model = swap_attention(build("bert", dtype=torch.float32), "gated", max_length=10)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert [layer.kind for layer in swapped_layers(loaded)] == ["gated"] * 3
    assert not is_calibrated(loaded)
    assert close(outputs(loaded), outputs(model))
    load_constants(loaded, make_constants(dtype=torch.float32))
    assert is_calibrated(loaded)


def test_training_goes_on(tmp_path):
    model = swapped("gated")
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).train()
    loaded(**make_inputs()).last_hidden_state.pow(2).sum().backward()
    assert all(gates.grad is not None for gates in gate_logits(loaded))
    assert all(layer.constants.grad is None for layer in swapped_layers(loaded))
    loaded.half().float()  # which transformers refuses of quantised models


def test_a_task_model_whether_it_or_its_encoder_was_swapped(tmp_path):
    for place in ("whole", "encoder"):
        model = build("bert", AutoModelForSequenceClassification, torch.float32)
        swapped(model=model if place == "whole" else model.bert)
        model.save_pretrained(tmp_path / place)
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / place)
        with torch.no_grad():
            assert close(loaded(**make_inputs()).logits, model(**make_inputs()).logits)
        assert close(outputs(AutoModel.from_pretrained(tmp_path / place)), outputs(model.bert))


def test_another_encoder_of_the_same_configuration_is_saved_as_it_is(tmp_path):
    config = make_config("bert")
    first, other = (randomize(BertModel(config), seed) for seed in range(2))
    before = config.to_dict()
    swapped(model=first)
    assert config.to_dict() == before
    other.save_pretrained(tmp_path / "other")
    first.save_pretrained(tmp_path / "first")
    assert note(tmp_path / "other") is None
    assert note(tmp_path / "first") is not None
    assert swapped_layers(AutoModel.from_pretrained(tmp_path / "other")) == []


def test_shards_copies_and_pickled_weights(tmp_path):
    model = swapped()
    copy.deepcopy(model).save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    model.save_pretrained(tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    for folder in ("shards", "pickled"):
        assert close(outputs(AutoModel.from_pretrained(tmp_path / folder)), outputs(model))


def test_a_state_dict_that_was_collected_before(tmp_path):
    model = swapped()
    model.save_pretrained(tmp_path, state_dict=model.state_dict())
    assert close(outputs(AutoModel.from_pretrained(tmp_path)), outputs(model))


def test_half_precision(tmp_path):
    model = swapped()
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {layer.constants.dtype for layer in swapped_layers(loaded)} == {torch.bfloat16}
    assert close(outputs(loaded), outputs(model.to(torch.bfloat16)))
    model.save_pretrained(tmp_path / "half")
    assert AutoModel.from_pretrained(tmp_path / "half").dtype == torch.bfloat16


def test_tied_weights(tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 37}
    config = LlamaForCausalLM.config_class(vocab_size=40, max_position_embeddings=24, tie_word_embeddings=True, **sizes)
    model = LlamaForCausalLM(config).eval()
    swap_attention(model, "constant", constants=make_constants(dtype=torch.float32))
    model.save_pretrained(tmp_path)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    inputs = {"input_ids": make_inputs()["input_ids"], "use_cache": False}
    with torch.no_grad():
        assert close(loaded(**inputs).logits, model(**inputs).logits)


def test_another_number_of_layers_is_refused(tmp_path):
    swapped().save_pretrained(tmp_path)
    with pytest.raises(PapaError, match="notes a swap of 3 layers, but the model is made with 2"):
        AutoModel.from_pretrained(tmp_path, num_hidden_layers=2)


def test_a_note_that_does_not_belong_to_the_weights_is_refused(tmp_path):
    model = swapped()
    model.save_pretrained(tmp_path / "swapped")
    config = json.loads((tmp_path / "swapped" / "config.json").read_text())
    restore_attention(model).save_pretrained(tmp_path / "plain")
    (tmp_path / "plain" / "config.json").write_text(json.dumps(config))
    with pytest.raises(PapaError, match="but the weights have no constants"):
        AutoModel.from_pretrained(tmp_path / "plain")
    config["quantization_config"]["layers"][1]["heads"] = [0]
    (tmp_path / "swapped" / "config.json").write_text(json.dumps(config))
    with pytest.raises(PapaError, match="kinds, heads or lengths differ"):
        AutoModel.from_pretrained(tmp_path / "swapped")
    for damaged in ({}, {"layers": 3}, {"layers": [], "max_length": "x"}):
        config["quantization_config"] = {"quant_method": "papa_lightning", **damaged}
        (tmp_path / "swapped" / "config.json").write_text(json.dumps(config))
        with pytest.raises(PapaError, match=r"config\.json"):
            AutoModel.from_pretrained(tmp_path / "swapped")


def test_transformers_without_papa_lightning_says_that_it_leaves_something_out(tmp_path, monkeypatch, caplog):
    swapped().save_pretrained(tmp_path)
    monkeypatch.delitem(auto.AUTO_QUANTIZATION_CONFIG_MAPPING, "papa_lightning")
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    assert swapped_layers(AutoModel.from_pretrained(tmp_path)) == []
    assert "Unknown quantization type, got papa_lightning" in caplog.text


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_a_whole_that_holds_it_in_a_way_that_cannot_be_found_again_says_so(tmp_path, monkeypatch):
    model = EncoderDecoderModel(
        encoder=build("bert", dtype=torch.float32),
        decoder=BertLMHeadModel(make_config("bert", is_decoder=True, add_cross_attention=True)),
    )
    swapped(model=model.encoder)
    monkeypatch.setattr("papa_lightning.encoders.notes.is_supported", lambda module: module is model.encoder)
    with pytest.warns(LostSwapWarning, match="EncoderDecoderModel.save_pretrained cannot note"):
        model.save_pretrained(tmp_path)


def test_calibration_of_a_loaded_encoder_is_of_its_own_attention(tmp_path):
    plain, batch = build("bert", dtype=torch.float32), make_inputs()
    expected = calibrate(plain, [batch], max_length=10)
    swapped(model=plain).save_pretrained(tmp_path)
    found = calibrate(AutoModel.from_pretrained(tmp_path), [batch], max_length=10)
    assert torch.equal(found.values[0], expected.values[0])
