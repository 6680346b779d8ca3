"""ONNX files: what is left in a graph, second files of weights, integers, float16. One graph is made for most tests."""

import importlib.util
import logging

import onnx
import onnxruntime
import pytest
import torch
from conformance.tiny_models import LENGTH, encoder_of, make_inputs, swapped

from papa_lightning.errors import ExportError
from papa_lightning.export import export_encoder, export_onnx
from papa_lightning.export.graphs import parts
from papa_lightning.export.onnx import write
from papa_lightning.export.source import ExportSettings

PADDED = [(1, 1, False), (1, LENGTH, False), (4, LENGTH, True), (3, 7, True)]


@pytest.fixture(scope="module")
def encoder():
    """Layers that are constant, partly constant, and dynamic."""
    return encoder_of(swapped("bert", "partial")).float().eval()


@pytest.fixture(scope="module")
def program(encoder):
    return write._program(encoder, position_ids=False)


@pytest.fixture
def written(program, monkeypatch):
    """The graph is made already."""
    monkeypatch.setattr(write, "_program", lambda encoder, position_ids: program)


def hidden(path, inputs):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {one.name: inputs[one.name].numpy() for one in session.get_inputs()})
    return torch.from_numpy(found)


def difference(encoder, path, sizes=PADDED):
    """The largest difference at a real token, and the largest hidden state."""
    worst = largest = 0.0
    for batch, length, padded in sizes:
        inputs = make_inputs("bert", batch, length, padded=padded)
        inputs["token_type_ids"] = (torch.arange(length) % 2).expand(batch, -1).contiguous()
        with torch.no_grad():
            expected = encoder(**inputs).last_hidden_state
        found, real = hidden(path, inputs), inputs["attention_mask"].bool()
        assert bool(found.isfinite().all())
        worst = max(worst, float((found - expected)[real].abs().max()))
        largest = max(largest, float(expected.abs().max()))
    return worst, largest


def test_the_graph_has_no_more_operators_than_it_needs(encoder, written, tmp_path):
    path = export_onnx(encoder, tmp_path / "model.onnx")
    graph = onnx.load(path).graph
    kinds = [node.op_type for node in graph.node]
    layers = encoder.config.num_hidden_layers
    assert kinds.count("Shape") == kinds.count("Where") == 1  # the length, and the mask of all dynamic heads
    assert kinds.count("Slice") <= layers + 1  # constants of each layer, and positions
    assert kinds.count("Gather") == 3  # embeddings: choices of heads are in weights
    assert not {"EyeLike", "Expand", "IsNaN", "Range", "ConstantOfShape", "Split"} & set(kinds)
    weights = {one.name for one in graph.initializer}
    shapes = [node.input[1] for node in graph.node if node.op_type == "Reshape"]
    assert shapes
    assert set(shapes) <= weights
    assert difference(encoder, path)[0] < 1e-5


def test_sums_before_norms_are_not_fused(encoder, written, tmp_path):
    """The fused kernel is slow on a CPU; a later onnxruntime may fuse Sum too, and should be measured then."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    path = export_onnx(encoder, tmp_path / "model.onnx")
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
    assert "SkipLayerNormalization" not in kinds
    assert kinds.count("LayerNormalization") == 2 * encoder.config.num_hidden_layers + 1


def test_files_hold_no_path_of_the_machine(encoder, written, tmp_path):
    content = export_onnx(encoder, tmp_path / "model.onnx").read_bytes()
    for place in (torch.__file__.rpartition("/")[0], write.__file__.rpartition("/")[0], str(tmp_path)):
        assert place.encode() not in content


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_weights_in_a_second_file(quantize, encoder, written, tmp_path, monkeypatch):
    monkeypatch.setattr(write, "ONE_FILE", 1000)
    (tmp_path / "first").mkdir()
    path = export_onnx(encoder, tmp_path / "first" / "model.onnx", quantize=quantize)
    names = sorted(file.name for file in path.parent.iterdir())
    assert names == ["model.onnx", "model.onnx.data"]
    moved = path.parent.rename(tmp_path / "moved") / "model.onnx"
    worst, largest = difference(encoder, moved)
    assert worst < (1e-5 if quantize is None else 0.1 * largest)


def test_integers(encoder, written, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        path = export_onnx(encoder, tmp_path / "model.onnx", quantize="int8")
    assert not caplog.records
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert kinds.count("MatMulInteger") > kinds.count("MatMul")
    worst, largest = difference(encoder, path)
    assert 1e-5 < worst < 0.1 * largest


def test_float16(tmp_path):
    encoder = encoder_of(swapped("bert", "all")).float().eval()
    expected = encoder_of(swapped("bert", "all")).float().eval()
    path = export_onnx(encoder.half(), tmp_path / "model.onnx")
    graph = onnx.load(path).graph
    kinds = {one.data_type for one in graph.initializer}
    assert onnx.TensorProto.FLOAT16 in kinds
    assert onnx.TensorProto.FLOAT not in {one.data_type for one in graph.initializer if len(one.dims) > 1}
    worst, largest = difference(expected, path)
    assert worst < 0.01 * largest
    with pytest.raises(ExportError, match=r"quantize is 'int8', .* encoder\.float\(\)"):
        export_onnx(encoder, tmp_path / "integers.onnx", quantize="int8")
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_masks_of_a_graph_are_those_of_its_input(encoder, monkeypatch):
    """Not read out of the larger ones that transformers makes; the next batch is read as usual."""
    module, inputs, _ = parts(encoder, False)
    program = torch.export.export(module, (), kwargs=inputs, strict=False)
    layers = [str(node.target) for node in program.graph.nodes]
    assert not any("diagonal" in name for name in layers)
    batch = make_inputs("bert", 4, LENGTH)
    with torch.no_grad():
        assert bool(encoder(**batch).last_hidden_state.isfinite().all())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quantize": "int4", "onnx": True}, "quantize is 'int4', but must be 'int8'"),
        ({"quantize": "int8"}, "quantize is 'int8', but onnx is False"),
    ],
)
def test_refused(settings, message, encoder, tmp_path):
    with pytest.raises(ExportError, match=message):
        export_encoder(encoder, tmp_path / "exported", **settings)
    assert list(tmp_path.iterdir()) == []


def test_integers_without_onnxruntime(encoder, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else found(name))
    with pytest.raises(ExportError, match="onnxruntime is not installed: pip install onnxruntime"):
        export_onnx(encoder, tmp_path / "model.onnx", quantize="int8")


def test_float16_and_integers_exclude_each_other():
    with pytest.raises(ExportError, match="quantize is 'int8' and dtype is 'float16'"):
        ExportSettings(encoder="here", constants="there", onnx=True, quantize="int8", dtype="float16")
