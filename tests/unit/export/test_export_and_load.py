"""Exported encoders give the same numbers when loaded, without unused weights.

What differs by family are the projections, so each kind of them has a case here. Every family is tried with PAPA_FUZZ
above 1.
"""

import copy
import json
import os

import pytest
import safetensors.torch
import torch
from conformance.tiny_models import CASES, HEADS, NAMES, build, encoder_of, make_config, make_inputs, swap, swapped
from transformers import AutoModelForSequenceClassification, BertConfig, BertModel, T5EncoderModel
from unit.encoders import tiny_encoders

from papa_lightning import (
    PapaError,
    calibrate,
    export_encoder,
    load_exported_encoder,
    restore_attention,
    swap_attention,
)
from papa_lightning.encoders import replace_mixing, swapped_layers
from papa_lightning.errors import ExportError

#: One for each way of projecting to queries and keys, and those whose layers share a module or norms.
FEW = ["deberta", "deberta-v2-own", "gpt2", "modernbert", "qwen3", "albert", "t5"]
FAMILIES = NAMES if float(os.environ.get("PAPA_FUZZ", "1")) > 1 else FEW
QUERY_AND_KEY = (
    "query",
    "key",
    "q_proj",
    "k_proj",
    "pos_",
    "q_lin",
    "k_lin",
    ".q.",
    ".k.",
    "q_bias",
    "q_norm",
    "k_norm",
)


def last(encoder, inputs):
    with torch.no_grad():
        return encoder(**inputs).last_hidden_state


def tensors(folder):
    return safetensors.torch.load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """Head 1 of layer 0 and all heads of layer 1 are constant; layer 2 is dynamic."""
    encoder = tiny_encoders.build(dtype=torch.float32)
    heads = {0: [1], 1: [0, 1, 2, 3]}
    swap_attention(encoder, "constant", constants=tiny_encoders.make_constants(), heads=heads)
    return encoder, export_encoder(encoder, tmp_path_factory.mktemp("bert") / "exported")


@pytest.mark.parametrize("mode", ["all", "partial"])
@pytest.mark.parametrize("name", FAMILIES)
def test_numbers_of_the_exported_encoder(name, mode, tmp_path):
    encoder, inputs = encoder_of(swapped(name, mode)).float(), make_inputs(name, dtype=torch.float32)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    loaded = load_exported_encoder(export_encoder(encoder, tmp_path / "exported"))
    assert torch.equal(last(loaded, inputs), last(encoder, inputs))
    assert all(torch.equal(value, encoder.state_dict()[key]) for key, value in before.items())
    assert type(loaded).__name__ == type(encoder).__name__.removeprefix("Swapped")
    assert not any(part.training for part in loaded.modules())
    saved = tensors(tmp_path / "exported")
    if mode == "all" and CASES[name].model_type != "t5":  # its table of relative positions stays
        assert [key for key in saved if any(word in key for word in QUERY_AND_KEY)] == []
    fused = [key for key in saved if key.endswith(("in_proj.weight", "c_attn.weight", "Wqkv.weight"))]
    if mode == "all":
        assert all(min(saved[key].shape) == max(saved[key].shape) for key in fused)  # the values alone


def test_what_is_left_out(bert):
    encoder, folder = bert
    saved, facts = tensors(folder), json.loads((folder / "papa.json").read_bytes())
    layers = "encoder.layer.{}.attention.self.{}.{}"
    for name in ("query", "key"):
        whole = encoder.get_submodule(f"encoder.layer.0.attention.self.{name}")
        kept = [row for row in range(32) if not 8 <= row < 16]
        assert torch.equal(saved[layers.format(0, name, "weight")], whole.weight[kept])
        assert torch.equal(saved[layers.format(0, name, "bias")], whole.bias[kept])
        assert not {layers.format(1, name, "weight"), layers.format(1, name, "bias")} & saved.keys()
        assert saved[layers.format(2, name, "weight")].shape == (32, 32)
    assert saved[layers.format(0, "papa", "constants")].shape == (1, 10, 10)
    assert layers.format(2, "papa", "constants") not in saved
    left_out = 2 * (32 + 1) * (8 + 32)
    whole = sum(value.numel() for value in BertModel(encoder.config).parameters())
    assert facts["parameters"] == {
        "whole": whole,
        "left_out": left_out,
        "added": 500,
        "saved": whole - left_out + 500,
    }
    loaded = load_exported_encoder(folder)
    held = [*loaded.parameters(), *(layer.constants for layer in swapped_layers(loaded))]
    assert sum(value.numel() for value in held) == whole - left_out + 500
    assert facts["heads"] == [[1], [0, 1, 2, 3], []]
    assert (facts["kinds"], facts["max_length"]) == (["constant"] * 3, 10)


def test_a_folder_needs_nothing_else(bert, tmp_path, monkeypatch):
    encoder, folder = bert
    moved = folder.rename(tmp_path / "moved")
    try:
        assert not any(str(folder.parent) in path.read_text(errors="ignore") for path in moved.iterdir())
        monkeypatch.chdir(tmp_path)
        assert torch.equal(
            *(last(one, tiny_encoders.make_inputs()) for one in (load_exported_encoder("moved"), encoder))
        )
    finally:
        moved.rename(folder)


def test_left_out_weights_never_have_memory(bert, monkeypatch):
    """Beside what is in the file, loading makes nothing that is as large as a projection."""
    made = []
    original = torch.nn.Parameter.__new__

    def count(cls, data=None, requires_grad=True):
        if data is not None and not data.is_meta:
            made.append(data.numel())
        return original(cls, data, requires_grad)

    monkeypatch.setattr(torch.nn.Parameter, "__new__", staticmethod(count))
    load_exported_encoder(bert[1])
    monkeypatch.undo()
    weights = {name: value for name, value in tensors(bert[1]).items() if ".papa." not in name}
    saved = sorted(value.numel() for value in weights.values())
    assert [size for size in sorted(made) if size > 100] == [size for size in saved if size > 100]


@pytest.mark.parametrize("undo", [
    restore_attention,
    lambda encoder: swap_attention(encoder, "constant", constants=tiny_encoders.make_constants()),
    lambda encoder: calibrate(encoder, [tiny_encoders.make_inputs()], max_length=10),
])  # fmt: skip
def test_what_is_gone_cannot_be_asked_for(bert, undo):
    loaded, inputs = load_exported_encoder(bert[1]), tiny_encoders.make_inputs()
    before, keys = last(loaded, inputs), list(loaded.state_dict())
    with pytest.raises(PapaError, match="without the query and key weights of its constant heads"):
        undo(loaded)
    assert torch.equal(last(loaded, inputs), before)
    assert list(loaded.state_dict()) == keys


def test_what_a_loaded_encoder_can_do(bert, tmp_path):
    encoder, folder = bert
    inputs = tiny_encoders.make_inputs()
    expected, loaded = last(encoder, inputs), load_exported_encoder(folder)
    again = export_encoder(loaded, tmp_path / "again")
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert json.loads((again / "papa.json").read_bytes()) == json.loads((folder / "papa.json").read_bytes())
    twin = copy.deepcopy(loaded)
    with torch.no_grad():
        twin.embeddings.word_embeddings.weight.zero_()
    assert torch.equal(last(loaded, inputs), expected)
    twin.load_state_dict(loaded.state_dict())
    assert torch.equal(last(twin, inputs), expected)
    half = last(load_exported_encoder(folder).to(torch.bfloat16), inputs)
    assert half.dtype == torch.bfloat16
    assert torch.allclose(half.float(), expected, atol=0.1)
    torch.save(loaded.state_dict(), tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True).keys() == loaded.state_dict().keys()
    compiled = torch.compile(loaded, backend="eager", fullgraph=True)
    assert torch.allclose(last(compiled, inputs), expected, atol=1e-6)


def test_gradients_reach_the_weights_that_are_left(bert):
    loaded = load_exported_encoder(bert[1])
    loaded(**tiny_encoders.make_inputs()).last_hidden_state.sum().backward()
    without = {name for name, one in loaded.named_parameters() if one.requires_grad and one.grad is None}
    assert without == {"pooler.dense.weight", "pooler.dense.bias"}
    assert not any(mixer.constants.requires_grad for mixer in swapped_layers(loaded))


@pytest.mark.parametrize("mode", ["gated"])
def test_kinds_that_leave_nothing_out(mode, tmp_path):
    encoder, inputs = swapped("bert", mode), make_inputs("bert")
    loaded = load_exported_encoder(export_encoder(encoder, tmp_path / "exported"))
    assert torch.equal(last(loaded, inputs), last(encoder, inputs))
    assert json.loads((tmp_path / "exported" / "papa.json").read_bytes())["parameters"]["left_out"] == 0
    with replace_mixing(loaded, [lambda attention, value, mask: value.transpose(1, 2)] * CASES["bert"].layers):
        loaded(**inputs)  # dynamic attention is all there


def test_encoders_with_a_task_head(tmp_path):
    model = tiny_encoders.build(auto=AutoModelForSequenceClassification)
    swap_attention(model, "constant", constants=tiny_encoders.make_constants())
    inputs = tiny_encoders.make_inputs()
    loaded = load_exported_encoder(export_encoder(model, tmp_path / "exported"))
    assert torch.equal(last(loaded, inputs), last(model.base_model, inputs))
    assert all(one.dtype == torch.float64 for one in loaded.parameters())


class OwnBert(BertModel):
    """The class of another project."""


def test_what_cannot_be_exported(tmp_path):
    plain = build("bert")
    with pytest.raises(ExportError, match="has no constants"):
        export_encoder(plain, tmp_path / "exported")
    with pytest.raises(ExportError, match="has no constants"):
        export_encoder(swap_attention(copy.deepcopy(plain), "constant", max_length=10), tmp_path / "exported")
    own = OwnBert(BertConfig(num_hidden_layers=1, num_attention_heads=HEADS, hidden_size=32, intermediate_size=8))
    constants = tiny_encoders.make_constants(layers=1)
    with pytest.raises(ExportError, match="class 'OwnBert'"):
        export_encoder(swap_attention(own, "constant", constants=constants), tmp_path / "exported")
    changed = swapped("bert", "all")
    changed.encoder.layer[1].output.extra = torch.nn.Linear(2, 2)
    with pytest.raises(ExportError, match=r"encoder.layer.1.output.extra.bias.*Layers that were added"):
        export_encoder(changed, tmp_path / "exported")
    with pytest.raises(ExportError, match="tokenizer is a str"):
        export_encoder(swapped("bert", "all"), tmp_path / "exported", "bert-base-uncased")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("whole", [True, False])
def test_encoders_of_encoder_decoders_that_were_saved(whole, tmp_path):
    """The encoder comes back, from the whole model and from one that transformers saves without a decoder."""
    model = copy.deepcopy(swapped("t5", "partial")).float() if whole else T5EncoderModel(make_config("t5")).eval()
    if not whole:
        swap("t5", model, "partial")
    model.save_pretrained(tmp_path)
    found, inputs = load_exported_encoder(tmp_path), make_inputs("t5", dtype=torch.float32)
    assert type(found) is type(model.get_encoder())
    torch.testing.assert_close(last(found, inputs), last(model.get_encoder(), inputs))


def test_an_encoder_that_was_saved_under_other_names_is_refused(tmp_path):
    """Its configuration is that of the whole model, whose parameters would all be random."""
    encoder_of(swapped("bart", "partial")).save_pretrained(tmp_path)
    with pytest.raises(ExportError, match=r"has no fitting weights for .* of its parameters"):
        load_exported_encoder(tmp_path)


def test_a_full_disk_is_no_fault_of_the_encoder(bert, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(PapaError, match=r"exported', which cannot be written \(.*No space left.*with room for it\."):
        export_encoder(bert[0], tmp_path / "exported")
    assert list(tmp_path.iterdir()) == []


def test_folders_that_are_taken(bert, tmp_path):
    encoder, _ = bert
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    (tmp_path / "empty").mkdir()
    for taken in ("file", "full"):
        with pytest.raises(ExportError, match="exists and is no export"):
            export_encoder(encoder, tmp_path / taken, replace=True)
    folder = export_encoder(encoder, tmp_path / "empty")
    with pytest.raises(ExportError, match="holds an export already"):
        export_encoder(encoder, folder)
    (folder / "papa.json").chmod(0o600)
    other = tiny_encoders.build(dtype=torch.float32, seed=1)
    swap_attention(other, "constant", constants=tiny_encoders.make_constants())
    export_encoder(other, folder, replace=True)
    assert torch.equal(*(last(one, tiny_encoders.make_inputs()) for one in (load_exported_encoder(folder), other)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "full"]
