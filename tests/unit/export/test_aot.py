"""Compiled encoders: packages of AOTInductor, what is asked for and refused, and torch.compile.

A C++ compiler takes half a minute for the smallest package, so that one is made with PAPA_FUZZ above 1 only.
"""

import json
import os
import shutil

import pytest
import torch
from conformance.tiny_models import LENGTH, encoder_of, swapped
from unit.export.test_graphs import batches, difference

from papa_lightning import export_encoder, load_exported_encoder
from papa_lightning.errors import ExportError
from papa_lightning.export import aot, export_aot

ALL = float(os.environ.get("PAPA_FUZZ", "1")) > 1
#: Batch size, length, and whether rows are padded; a partly constant encoder takes no length of 1.
SIZES = [(1, 2, False), (3, LENGTH, True), (4, 7, True), (1, LENGTH, False), (5, 3, False)]


def without_compiler(monkeypatch):
    from torch._inductor import cpp_builder, exc

    def none():
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)


@pytest.mark.no_cover
@pytest.mark.skipif(not ALL, reason="a C++ compiler takes half a minute; PAPA_FUZZ=2 tries it")
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
@pytest.mark.parametrize("mode", ["all", "partial"])
def test_numbers_at_every_size(mode, tmp_path):
    encoder = encoder_of(swapped("bert", mode)).float()
    folder = export_encoder(encoder, tmp_path / "exported", aot=True)
    package = torch._inductor.aoti_load_package(str(folder / aot.PACKAGE))
    for inputs in batches("bert", [*SIZES, (2, 1, False)] if mode == "all" else SIZES):
        assert difference(encoder, inputs, package(**inputs)) < 1e-5
    assert torch.equal(*(load_exported_encoder(folder)(**inputs).last_hidden_state for _ in range(2)))


def test_the_package_stands_in_the_folder(monkeypatch, tmp_path):
    """The compiler is a stand-in: what it gets is the graph of the exported encoder, with its inputs."""
    seen = []

    def compiler(program, *, package_path):
        seen.append(program)
        (tmp_path / "made").write_bytes(b"package")
        return shutil.copy(tmp_path / "made", package_path)

    monkeypatch.setattr("torch._inductor.aoti_compile_and_package", compiler)
    encoder = encoder_of(swapped("bert", "all")).float()
    folder = export_encoder(encoder, tmp_path / "exported", aot=True, position_ids=True)
    assert (folder / "model.pt2").read_bytes() == b"package"
    assert not (folder / "model.onnx").exists()
    assert json.loads((folder / "papa.json").read_bytes())["first_position_id"] == 0
    names = [one.arg.name for one in seen[0].graph_signature.input_specs if one.kind.name == "USER_INPUT"]
    assert names == ["input_ids", "attention_mask", "token_type_ids", "position_ids"]
    assert not any("query" in name for name, held in seen[0].state_dict.items() if held.numel())


def test_what_is_refused(monkeypatch, tmp_path):
    encoder = encoder_of(swapped("bert", "all")).float()
    program = torch.export.export(torch.nn.Identity(), (torch.ones(1),))
    with pytest.raises(ExportError, match=r"wants the name of a package to end in \.pt2"):
        aot.compile_program(program, tmp_path / "model.so")

    def fail(program, **options):
        raise RuntimeError("g++:\n  no space left")

    monkeypatch.setattr("torch._inductor.aoti_compile_and_package", fail)
    with pytest.raises(ExportError, match=r"cannot be compiled ahead of time .*RuntimeError: g\+\+: no space left"):
        aot.compile_program(program, tmp_path / "model.pt2")
    without_compiler(monkeypatch)
    for run in (
        lambda: export_aot(encoder, tmp_path / "m.pt2"),
        lambda: export_encoder(encoder, tmp_path / "e", aot=True),
    ):
        with pytest.raises(ExportError, match=r"no C\+\+ compiler, .*install g\+\+ .* variable CXX"):
            run()
    assert list(tmp_path.iterdir()) == []


def test_torch_compile_makes_one_graph_for_all_sizes_but_one(tmp_path):
    loaded = load_exported_encoder(export_encoder(encoder_of(swapped("bert", "all")).float(), tmp_path / "exported"))
    made = []

    def backend(graph, inputs):
        made.append(graph)
        return graph.forward

    torch.compiler.reset()
    compiled = torch.compile(loaded, backend=backend, dynamic=True, fullgraph=True)
    for inputs in batches("bert", [(2, 5, True), (3, LENGTH, True), (4, 6, False)]):
        with torch.no_grad():
            assert difference(loaded, inputs, compiled(**inputs).last_hidden_state) < 1e-5
    assert len(made) == 1
