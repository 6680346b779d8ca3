"""Runtimes beside torch: their variants, what times are compared with, what runs, and what is refused.

Making a graph takes seconds, so that one benchmark makes graphs; the package of AOTInductor is tested where it is made.
"""

import importlib.util
import os
import shutil
from pathlib import Path

import pytest
import torch
from unit.encoders import tiny_encoders
from unit.export.test_aot import without_compiler

from papa_lightning.benchmark import BenchmarkSettings, ShapeSettings, format_result, run, run_benchmark, runtimes
from papa_lightning.benchmark.backends import backend_of, check_runtime
from papa_lightning.benchmark.run import Variant, reference_of, variants
from papa_lightning.encoders import swap_attention
from papa_lightning.errors import ExportError, PapaError

ALL = float(os.environ.get("PAPA_FUZZ", "1")) > 1
CPU = torch.device("cpu")
TINY = {"shape": ShapeSettings(hidden=[16], layers=[1], heads=[2]), "inputs": ["3x8"], "device": "cpu"}


def make_settings(**changed):
    return BenchmarkSettings(**(TINY | {"threads": 1, "repeats": 7, "warmup": 0} | changed))


def names(settings):
    (first, *_) = settings.sizes()
    return [" ".join([one.kind, *([] if one.share is None else [f"{one.share:g}"]), one.backend]) for one in
            variants(settings, first)]  # fmt: skip


def test_variants_of_runtimes():
    both = make_settings(runtimes=["torch", "onnxruntime"], shares=[0.5], kinds=["constant", "folded"])
    assert names(both) == [
        "stock sdpa",
        "stock onnxruntime",
        "stock onnxruntime/eager",
        "constant 0.5 sdpa",
        "constant 0.5 onnxruntime",
        "folded sdpa",
        "folded onnxruntime",
    ]
    alone = make_settings(runtimes=["inductor"], backends=["eager"])
    assert names(alone) == ["stock inductor", "constant 1 inductor"]


def test_a_calibration_runs_in_torch_whatever_else_runs():
    settings = make_settings(runtimes=["inductor"], kinds=["calibration"])
    assert names(settings) == ["stock inductor", "stock sdpa", "calibration sdpa"]


def test_times_are_compared_with_the_fastest_stock_graph_of_the_runtime():
    seconds = {"sdpa": 1.0, "onnxruntime": 4.0, "onnxruntime/eager": 3.0, "inductor": 2.0}
    times = {Variant("stock", None, name, "forward"): [one, one] for name, one in seconds.items()}

    def reference(backend):
        return reference_of(Variant("constant", 1.0, backend, "forward"), times).backend

    assert [reference(name) for name in ("sdpa", "onnxruntime", "inductor")] == [
        "sdpa",
        "onnxruntime/eager",
        "inductor",
    ]
    assert backend_of("onnxruntime/eager").implementation == "eager"


def test_graphs_give_what_the_encoders_give(monkeypatch, tmp_path):
    """One small benchmark in onnxruntime, whose outputs are compared with those of torch on the same batch.

    The graph of the swapped encoder takes seconds more: with PAPA_FUZZ of 1 that of the stock encoder stands in.
    """
    pytest.importorskip("onnxruntime")
    given, seen, exported = [], [], []
    monkeypatch.setattr(runtimes.OnnxRuntime, "stock_attention", ("eager",))
    stock_onnx, over = runtimes.stock_onnx, runtimes._over
    monkeypatch.setattr(
        runtimes, "stock_onnx", lambda encoder, path: Path(shutil.copy(stock_onnx(encoder, path), tmp_path / "stock"))
    )
    if not ALL:
        monkeypatch.setattr(
            runtimes, "export_onnx", lambda encoder, path: exported.append(encoder) or tmp_path / "stock"
        )
    monkeypatch.setattr(
        runtimes, "_over", lambda graph, batches: seen.append(graph(batches[0])[0]) or over(graph, batches)
    )
    monkeypatch.setattr(run, "make_batches", lambda *arguments: given)
    given.append({"input_ids": torch.arange(1, 25).view(3, 8), "attention_mask": torch.ones(3, 8).long()})
    given[0]["attention_mask"][1, 5:] = 0
    settings = make_settings(runtimes=["onnxruntime"], shares=[0.5], max_length=12)
    found = run_benchmark(settings, progress=False)
    assert [(row.kind, row.backend, row.peak_bytes) for row in found.rows] == [
        ("stock", "onnxruntime", None),
        ("constant", "onnxruntime", None),
    ]
    assert found.rows[-1].held_bytes == 4 * 12 * 12  # one of two heads, at the length of the constants
    assert found.rows[-1].bound > 1
    assert found.rows[0].speed == 1
    assert "constant 50 %, onnxruntime" in str(format_result(found))

    stock = run.make_stock(settings, settings.sizes()[0], CPU)
    constant = run.copy_of(stock)
    constants = run.random_constants(stock, 12, False, settings.seed)
    swap_attention(constant, "constant", constants=constants, heads=run.choose_heads(stock, settings, 0.5))
    real = given[0]["attention_mask"].bool()
    if not ALL:
        (loaded,) = exported
        assert loaded.encoder.layer[0].attention.self.query.out_features == 8  # of one head; the other is left out
    for encoder, states in zip((stock, constant) if ALL else (stock,), seen, strict=False):
        with torch.no_grad():
            expected = encoder(**given[0]).last_hidden_state
        assert float((torch.from_numpy(states) - expected)[real].abs().max()) < 1e-5


def test_what_is_refused(monkeypatch):
    for changed, message in (
        ({"runtimes": ["tensorrt"]}, "runtimes is 'tensorrt', but must be one of 'torch', 'onnxruntime', 'inductor'"),
        ({"runtimes": []}, "runtimes is empty"),
        ({"runtimes": ["onnxruntime"], "work": ["forward", "training"]}, "work has 'training', but runtimes has 'onnx"),
        ({"max_length": 0}, "max_length is 0, but must be a whole number from 1"),
        ({"max_length": 7}, r"max_length is 7, but inputs has 3x8: pass a max_length of 8 or more, or shorter inputs"),
    ):
        with pytest.raises(PapaError, match=message):
            make_settings(**changed)
    with pytest.raises(PapaError, match="whose graphs are in float32, but dtype is bfloat16"):
        check_runtime("onnxruntime", "bfloat16", CPU)
    with pytest.raises(PapaError, match="timed on the CPU, but device is cuda: pass device cpu, or leave it out"):
        check_runtime("onnxruntime", "float32", torch.device("cuda"))
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(PapaError, match="'onnxruntime', which is not installed: pip install onnxruntime"):
            run_benchmark(make_settings(runtimes=["onnxruntime"]), progress=False)
    without_compiler(monkeypatch)
    with pytest.raises(ExportError, match=r"runtimes has 'inductor', but there is no C\+\+ compiler"):
        run_benchmark(make_settings(runtimes=["inductor"]), progress=False)


def test_constants_longer_than_an_encoder_reads():
    settings = make_settings(max_length=600)
    assert run.make_stock(settings, settings.sizes()[0], CPU).config.max_position_embeddings > 600
    assert not runtimes.is_swapped(tiny_encoders.build())
