"""Graphs of swapped encoders give the numbers of the encoder, at every batch size and length.

Making a graph takes seconds, so that one encoder has layers of all sorts: fully constant, partly constant, and stock.
Every case is tried with PAPA_FUZZ above 1.
"""

import importlib.util
import os

import onnxruntime
import pytest
import torch
from conformance.tiny_models import CASES, LENGTH, NAMES, encoder_of, make_inputs, swapped

from papa_lightning import export_encoder, load_exported_encoder
from papa_lightning.attention.functional import constant_attention, constant_attention_of_any_size
from papa_lightning.errors import ExportError
from papa_lightning.export import export_onnx, export_program

ALL = float(os.environ.get("PAPA_FUZZ", "1")) > 1
TEXT = [name for name in NAMES if CASES[name].kind != "image"]
GRAPHS = [(name, mode) for name in TEXT for mode in ("all", "partial")] if ALL else [("llama", "partial")]
PROGRAMS = GRAPHS if ALL else [("bert", "all")]
#: Batch size, length, and whether rows are padded: behind, in the middle, in front.
SIZES = [(1, 1, False), (3, 1, False), (1, LENGTH, False), (4, LENGTH, True), (4, 7, True), (2, 2, False)]


def exact(name, mode):
    return encoder_of(swapped(name, mode)).float()


def batches(name, sizes=SIZES):
    for batch, length, padded in sizes:
        inputs = make_inputs(name, batch, length, padded=padded)
        if "token_type_ids" in inputs or name == "bert":
            inputs["token_type_ids"] = (torch.arange(length) % 2).expand(batch, -1).contiguous()
        yield inputs


def difference(encoder, inputs, result):
    options = {"use_cache": False} if getattr(encoder.config, "use_cache", False) else {}
    with torch.no_grad():
        expected = encoder(**inputs, **options).last_hidden_state
    real = inputs["attention_mask"].bool()
    return float((result - expected)[real].abs().max())


@pytest.mark.parametrize(("name", "mode"), GRAPHS)
def test_onnx(name, mode, tmp_path):
    encoder = exact(name, mode)
    loaded = load_exported_encoder(export_encoder(encoder, tmp_path / "exported"))
    path = export_onnx(loaded, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [output.shape[2] for output in session.get_outputs()] == [encoder.config.hidden_size]
    for inputs in batches(name):
        inputs.setdefault("token_type_ids", torch.zeros_like(inputs["input_ids"]))
        given = {one.name: inputs[one.name].numpy() for one in session.get_inputs()}
        (result,) = session.run(["last_hidden_state"], given)
        assert difference(encoder, {key: inputs[key] for key in given}, torch.from_numpy(result)) < 1e-5


@pytest.mark.parametrize(("name", "mode"), PROGRAMS)
def test_torch_export(name, mode):
    encoder = exact(name, mode)
    run = export_program(encoder).module()
    shortest = 1 if mode == "all" and not ALL else 2
    for inputs in batches(name, [size for size in SIZES if size[1] >= shortest]):
        given = {key: inputs[key] for key in inputs if key != "token_type_ids" or name == "bert"}
        assert difference(encoder, given, run(**given)) < 1e-5


@pytest.mark.parametrize("padded", [True, False])
def test_constant_attention_without_looking_at_sizes(padded):
    generator = torch.Generator().manual_seed(0)
    constants = torch.rand(3, 5, 5, generator=generator, dtype=torch.float64)
    constants[1, 2] = 0  # a row without mass
    value = torch.randn(2, 3, 5, 4, generator=generator, dtype=torch.float64)
    mask = torch.tensor([[1, 0, 1, 1, 0], [1, 1, 1, 1, 1]]).bool() if padded else None
    result, real = constant_attention_of_any_size(constants, value, mask), mask if padded else slice(None)
    assert result.is_contiguous()
    assert bool(result.isfinite().all())  # rows of padding too, which nothing reads
    assert torch.allclose(result[real], constant_attention(constants, value, mask)[real], atol=1e-14)


def test_what_cannot_be_a_graph(monkeypatch, tmp_path):
    encoder = exact("bert", "all")
    with pytest.raises(ExportError, match="training mode"):
        export_program(encoder.train())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ExportError, match=r"onnx and onnxscript are not installed: pip install .*\[onnx\]"):
        export_encoder(encoder.eval(), tmp_path / "exported", onnx=True)
    assert list(tmp_path.iterdir()) == []
