"""Benchmarks on a GPU: graphs that are replayed, packed batches, memory, and all work of a tiny encoder."""

import math
from typing import Any

import pytest
import torch

from papa_lightning.benchmark import BenchmarkSettings, ShapeSettings, StudyTiming, markdown, run_benchmark
from papa_lightning.benchmark.backends import Captured

SMALL: dict[str, Any] = {
    "shape": ShapeSettings(hidden=[64], layers=[2], heads=[2]),
    "repeats": 7,
    "warmup": 1,
    "device": "cuda",
}


def test_a_captured_function_is_replayed(device: torch.device) -> None:
    source, target, calls = torch.ones(3, device=device), torch.zeros(3, device=device), []

    def run() -> None:
        calls.append(1)
        target.copy_(2 * source)

    graph = Captured(run, torch.device("cuda"))
    graph()
    calls.clear()
    source.fill_(5.0)
    graph()
    assert target.tolist() == [10.0] * 3
    assert calls == []


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "bf16-mixed"])
def test_all_kinds_backends_and_work(dtype: Any) -> None:
    settings = BenchmarkSettings(
        **SMALL,
        inputs=["4x32"],
        padding=[0, 0.3],
        kinds=["constant", "learned", "gated", "compact", "aft_simple", "calibration"],
        shares=[0.5, 1],
        options={"compact": {"width": 4}},
        backends=["sdpa", "graph", "packed"],
        work=["forward", "training"],
        dtype=dtype,
    )
    found = run_benchmark(settings, progress=False)
    for row in found.rows:
        assert math.isfinite(row.speed), row
        assert row.peak_bytes is not None, row
        assert row.peak_bytes > 0, row
    ways = {(row.backend, row.work) for row in found.rows if row.kind == "constant"}
    assert len(ways) == 3 * 2
    for backend in ("sdpa", "graph"):
        assert any(row.kind == "stock" and row.backend == backend and row.speed == 1 for row in found.rows)
    assert found.about["gpu"]["capability"] in markdown(found)


def test_a_causal_model_and_a_study() -> None:
    settings = BenchmarkSettings(
        shape=ShapeSettings(type="papa_transformer", hidden=[64], layers=[1], heads=[2]),
        inputs=["2x64"],
        kinds=["aft_simple", "aft_local", "aft_conv", "aft_full"],
        work=["training"],
        dtype="bf16-mixed",
        device="cuda",
        repeats=7,
        study=StudyTiming(rows=64, evaluated=16, hidden=64, layers=1, heads=2, shares=[0.5], max_epochs=1),
    )
    found = run_benchmark(settings, progress=False)
    assert [row.kind for row in found.rows] == ["stock", "aft_simple", "aft_local", "aft_conv", "aft_full"]
    assert [one.piece for one in found.study] == ["calibration and ranking", "share 0", "share 0.5"]
