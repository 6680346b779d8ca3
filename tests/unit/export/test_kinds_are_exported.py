"""Encoders of every kind are exported and loaded with the same numbers."""

import copy

import pytest
import torch
from conformance.tiny_models import encoder_of, make_constants, make_inputs, plain
from unit.export.test_export_and_load import last, tensors

from papa_lightning import CompactConstants, export_encoder, load_exported_encoder, swap_attention
from papa_lightning.calibration import merge_constants
from papa_lightning.encoders import swapped_layers
from papa_lightning.export.graphs import export_program

AVERAGES = make_constants("bert")
KINDS = {
    "gated": {"constants": AVERAGES},
    "folded": {"constants": merge_constants(AVERAGES)},
    "compact": {"constants": CompactConstants.fit(AVERAGES, width=3)},
    "shared": {"constants": AVERAGES},
    "aft_full": {"constants": AVERAGES},
    "aft_local": {"constants": AVERAGES, "options": {"window": 4}},
    "aft_conv": {"constants": AVERAGES, "options": {"window": 3}},
    "aft_simple": {},
    "additive": {},
}


def swapped_to(kind):
    """A tiny BERT of one kind, in float32."""
    encoder = copy.deepcopy(encoder_of(plain("bert", None, torch.float32)))
    return swap_attention(encoder, kind, **KINDS[kind]).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind(kind, tmp_path):
    encoder, inputs = swapped_to(kind), make_inputs("bert", dtype=torch.float32)
    loaded = load_exported_encoder(export_encoder(encoder, tmp_path / "exported"))
    assert {layer.kind for layer in swapped_layers(loaded)} == {kind}
    # Not bit for bit: products of weights that are made anew may be rounded otherwise where memory lies otherwise.
    assert torch.allclose(last(loaded, inputs), last(encoder, inputs), rtol=0, atol=1e-5)
    queries = [key for key in tensors(tmp_path / "exported") if ".query." in key]
    assert (queries == []) == (kind in ("folded", "compact", "shared"))


def test_layers_of_different_kinds(tmp_path):
    encoder, inputs = copy.deepcopy(encoder_of(plain("bert", None, torch.float32))), make_inputs("bert")
    swap_attention(encoder, ["constant", "dynamic", "aft_simple"], constants=AVERAGES)
    loaded = load_exported_encoder(export_encoder(encoder, tmp_path / "exported"))
    assert [layer.kind for layer in swapped_layers(loaded)] == ["constant", "dynamic", "aft_simple"]
    assert torch.equal(last(loaded, inputs), last(encoder, inputs))


def test_images_of_folded_heads():
    """Their length is known to a graph, but not their number."""
    encoder = copy.deepcopy(encoder_of(plain("vit", None, torch.float32)))
    swap_attention(encoder, "folded", constants=merge_constants(make_constants("vit")))
    program = export_program(encoder.eval()).module()
    for batch in (1, 3):
        inputs = make_inputs("vit", batch, dtype=torch.float32)
        with torch.no_grad():
            assert torch.allclose(program(**inputs), last(encoder, inputs), rtol=0, atol=1e-5)


@pytest.mark.no_cover  # which doubles the time of torch's compiler; it runs no line of ours
@pytest.mark.parametrize("kinds", ["shared", ["shared", "dynamic", "constant"], ["dynamic", "gated", "additive"]])
@pytest.mark.parametrize("name", ["bert", "gpt2", "albert", "deberta", "t5", "vit"])
def test_dynamic_matrices(name, kinds, tmp_path):
    """Layers that compute their matrix, alone and beside others; with token types and without."""
    encoder, inputs = (
        copy.deepcopy(encoder_of(plain(name, None, torch.float32))),
        make_inputs(name, dtype=torch.float32),
    )
    constants = None if kinds == "shared" else make_constants(name)
    options = None if kinds == "shared" else [{"matrix": "dynamic"} if kind == "shared" else {} for kind in kinds]
    swap_attention(encoder, kinds, constants=constants, options=options, max_length=make_constants(name).max_length)
    expected = last(encoder.eval(), inputs)
    loaded = load_exported_encoder(export_encoder(encoder, tmp_path / "exported"))
    assert torch.allclose(last(loaded, inputs), expected, rtol=0, atol=1e-5)
    if "additive" in kinds:  # its loop over rows is no graph for all lengths, and is refused as one
        return
    program = export_program(loaded).module()
    if name != "vit":
        inputs |= {"token_type_ids": torch.zeros_like(inputs["input_ids"])} if name in ("bert", "albert") else {}
    with torch.no_grad():
        real = inputs.get("attention_mask", torch.ones(expected.shape[:2])).bool()
        assert torch.allclose(program(**inputs)[real], expected[real], rtol=0, atol=1e-4)
