"""Exported encoders give the same numbers for the real tokens of each row moved together, with their slots as ids.

The batches are packed by the function on the page about exports. Making a graph takes seconds, so every family is tried
with PAPA_FUZZ above 1 only.
"""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from conformance.tiny_models import CASES, LENGTH, NAMES, VOCABULARY, encoder_of, swapped
from unit.export.test_kinds_are_exported import swapped_to

from papa_lightning import export_encoder, load_exported_encoder
from papa_lightning.errors import ExportError
from papa_lightning.export import export_onnx, export_program, graphs
from papa_lightning.export.facts import read_facts
from papa_lightning.files.checked import json_bytes

REFUSED = [name for name in NAMES if CASES[name].kind in ("image", "text to text") or name.startswith("papa-")]
REFUSED += [name for name in NAMES if CASES[name].model_type in ("deberta", "deberta-v2", "mpnet", "roformer")]
WINDOWS = [name for name in NAMES if CASES[name].reach]
#: Those that number real tokens by themselves from `padding_idx + 1`, without counting padding between them.
NUMBERING = [name for name in NAMES if CASES[name].model_type in ("roberta", "xlm-roberta", "camembert")]
ALL = float(os.environ.get("PAPA_FUZZ", "1")) > 1
HEARING = [(name, mode) for name in NAMES if name not in REFUSED for mode in ("all", "partial", "gated")]
FEW = [("bert", "gated"), ("roberta", "partial"), ("modernbert", "partial"), ("llama", "all")]
#: Numbers of real tokens of the rows: of the full length, of different lengths, of a single row, of one token.
ROWS = [[LENGTH, 4, 1, 7], [5, 6, 2], [3], [1, 1]]
PAGE = Path(__file__).parents[3] / "docs" / "export.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
PLAIN, PACKED, EXAMPLE = (
    next(one for one in BLOCKS if word in one) for word in ("encoder.onnx", "packed.onnx", "def pack")
)


def pack(inputs, first):
    names = {}
    exec(EXAMPLE.partition("\npacked = ")[0], names)
    moved = names["pack"]({name: values.numpy() for name, values in inputs.items()}, first)
    return {name: torch.from_numpy(values) for name, values in moved.items()}


def padded(name, encoder, rows, layout):
    """Rows with padding behind, in front, or with all tokens but the last in front and that at the end."""
    generator, mask = torch.Generator().manual_seed(0), torch.zeros(len(rows), LENGTH, dtype=torch.int64)
    for row, count in zip(mask, rows, strict=True):
        row[{"plain": slice(count), "left": slice(LENGTH - count, None), "segment": slice(count - 1)}[layout]] = 1
        row[LENGTH - 1 if layout == "segment" and count > 1 else row.argmax()] = 1
    tokens = torch.randint(3, VOCABULARY, mask.shape, generator=generator)
    inputs = {"input_ids": tokens.where(mask.bool(), encoder.config.pad_token_id or 0), "attention_mask": mask}
    if getattr(encoder.config, "type_vocab_size", 0) > 1:
        inputs["token_type_ids"] = (torch.arange(LENGTH) > 4).long().expand(mask.shape).contiguous()
    return inputs


def batches(name, encoder):
    """Packed batches of all layouts that are exact, and the hidden states of their real tokens in unpacked ones.

    Third is whether whole rows were moved in angles of positions, which are in float32 in any encoder.
    """
    first = 2 if name in NUMBERING else 0
    for layout in ("plain", "left", "segment"):
        if layout == "segment" and name in WINDOWS:
            continue
        for rows in ROWS:
            inputs = padded(name, encoder, rows, layout)
            packed, ids = pack(inputs, first), {}
            if layout == "left" and (CASES[name].relative or name in NUMBERING):
                packed["position_ids"] = (packed["position_ids"] - packed["position_ids"][:, :1]).clamp_min(0) + first
            if layout == "segment" and name in NUMBERING:
                ids = {"position_ids": torch.arange(LENGTH).expand(len(rows), -1) + first}
            moved = layout == "left" and CASES[name].relative
            yield packed, last(encoder, inputs | ids)[inputs["attention_mask"].bool()], moved


def last(encoder, inputs):
    options = {"use_cache": False} if getattr(encoder.config, "use_cache", False) else {}
    with torch.no_grad():
        return encoder(**inputs, **options).last_hidden_state


def assert_equal(packed, hidden, expected, moved):
    bound = 1e-5 if moved or hidden.dtype == torch.float32 else 1e-12
    assert float((hidden[packed["attention_mask"].bool()] - expected).abs().max() / expected.abs().max()) < bound


def serve(session, packed):
    (hidden,) = session.run(None, {one.name: packed[one.name].numpy() for one in session.get_inputs()})
    return torch.from_numpy(hidden)


@pytest.mark.parametrize(
    ("name", "mode"), HEARING if ALL else [*FEW, ("bert", "all"), ("gpt2", "gated"), ("albert", "partial")]
)
def test_loaded_encoders(name, mode, tmp_path):
    encoder = encoder_of(swapped(name, mode))
    loaded = load_exported_encoder(export_encoder(encoder, tmp_path / "exported"))
    for packed, expected, moved in batches(name, encoder):
        assert_equal(packed, last(loaded, packed), expected, moved)


@pytest.mark.no_cover  # which doubles the time of torch's compiler; it runs no line of ours
@pytest.mark.parametrize(("name", "mode"), HEARING if ALL else FEW)
def test_programs(name, mode):
    encoder = encoder_of(swapped(name, mode)).float()
    program = export_program(encoder, position_ids=True)
    made = [node for node in program.graph.nodes if "scatter" in str(node.target)]
    assert len(made) == 2  # tokens and mask by slot, for all layers together
    for packed, expected, moved in batches(name, encoder):
        if packed["input_ids"].shape[1] > 1 or mode != "partial":  # as without position_ids
            with torch.no_grad():
                assert_equal(packed, program.module()(**packed), expected, moved)


@pytest.mark.no_cover
@pytest.mark.parametrize(("name", "mode"), HEARING if ALL else [("llama", "gated")])
def test_onnx(name, mode, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    encoder = encoder_of(swapped(name, mode)).float()
    session = runtime.InferenceSession(export_onnx(encoder, tmp_path / "model.onnx", position_ids=True))
    for packed, expected, moved in batches(name, encoder):
        assert_equal(packed, serve(session, packed), expected, moved)


@pytest.mark.no_cover
@pytest.mark.parametrize("kind", ["folded", "shared", "additive", "aft_simple"] if ALL else ["folded"])
def test_programs_of_kinds(kind):
    encoder = swapped_to(kind)
    program = export_program(encoder, position_ids=True).module()
    for packed, expected, moved in batches("bert", encoder):
        with torch.no_grad():
            assert_equal(packed, program(**packed), expected, moved)


def test_rows_with_holes_where_the_encoder_does_not_count_padding():
    """The ids that roberta gives by itself are not the slots, so that the page asks for a comparison with the ids."""
    encoder = encoder_of(swapped("roberta", "all"))
    inputs = padded("roberta", encoder, [7, 5], "segment")
    packed = pack(inputs, 2)
    hidden = last(encoder, packed)[packed["attention_mask"].bool()]
    assert float((hidden - last(encoder, inputs)[inputs["attention_mask"].bool()]).abs().max()) > 0.01


@pytest.mark.no_cover
def test_the_examples_of_the_page(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    encoder = encoder_of(swapped("bert", "partial")).float()
    folder = export_encoder(encoder, tmp_path / "exported", onnx=True, position_ids=True)
    assert read_facts(folder).first_position_id == 0
    batch = padded("bert", encoder, [5, 8, 1], "segment")
    names = {"batch": batch, "encoder": encoder}
    for code in (PLAIN, PACKED, EXAMPLE):
        exec(code, names)
    assert [one.name for one in names["session"].get_inputs()] == list(graphs._TEXT)
    assert names["hidden"].shape[:2] == (3, 8)
    expected = last(load_exported_encoder(folder), batch)[batch["attention_mask"].bool()]
    assert float((torch.from_numpy(names["vectors"]) - expected).abs().max()) < 1e-5
    for packed, hidden, moved in batches("bert", encoder):
        assert_equal(packed, serve(names["session"], packed), hidden, moved)


def test_what_the_folder_says(monkeypatch, tmp_path):
    monkeypatch.setattr("papa_lightning.export.folder.export_onnx", lambda *arguments: None)
    encoder = encoder_of(swapped("roberta", "all"))
    folder = export_encoder(encoder, tmp_path / "exported", onnx=True, position_ids=True)
    assert read_facts(folder).first_position_id == 2
    export_encoder(encoder, folder, onnx=True, replace=True)
    content = json.loads((folder / "papa.json").read_bytes())
    assert content.pop("first_position_id") is None
    del content["sha256"]
    (folder / "papa.json").write_bytes(json_bytes(content.pop("format"), content))  # as earlier versions wrote it
    assert read_facts(folder).first_position_id is None


@pytest.mark.parametrize("name", REFUSED)
def test_encoders_whose_layers_do_not_hear_of_position_ids(name, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.export, "export", lambda *arguments, **others: pytest.fail("a graph was begun"))
    encoder = encoder_of(swapped(name, "all"))
    message = rf"position_ids is True, but the layers of {type(encoder).__name__} do not hear of position ids: leave"
    with pytest.raises(ExportError, match=message):
        export_program(encoder, position_ids=True)
    with pytest.raises(ExportError, match=message):
        export_encoder(encoder, tmp_path / "exported", onnx=True, position_ids=True)
    assert list(tmp_path.iterdir()) == []


def test_position_ids_without_a_graph(tmp_path):
    with pytest.raises(ExportError, match="position_ids is True, but onnx is False"):
        export_encoder(encoder_of(swapped("bert", "all")), tmp_path / "exported", position_ids=True)
    assert list(tmp_path.iterdir()) == []
