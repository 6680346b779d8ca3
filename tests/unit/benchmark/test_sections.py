"""Benchmarks of several sections, with a study: one file of results, a table for each."""

import json

import pytest
import torch

from papa_lightning.benchmark import (
    BenchmarkResult,
    BenchmarkSettings,
    ShapeSettings,
    StudyTiming,
    format_result,
    markdown,
    run_benchmark,
    write_benchmark,
)
from papa_lightning.benchmark.study_times import time_study

SIZES = {"rows": 24, "evaluated": 6, "max_length": 12, "tokens": 6, "hidden": 16, "layers": 1, "heads": 2}
STUDY = StudyTiming(**SIZES, shares=[0.5], seeds=2, max_epochs=1)


@pytest.fixture(scope="module")
def result():
    settings = BenchmarkSettings(
        shape=ShapeSettings(hidden=[16], layers=[1], heads=[2]),
        inputs=["2x8"],
        device="cpu",
        threads=1,
        repeats=7,
        warmup=0,
        sections={
            "all": {"padding": [0, 0.25]},
            "halves": {"dtype": "bfloat16", "inputs": ["1x4", "1x8", "1x16"], "shape": {"heads": [4]}},
        },
        study=STUDY,
    )
    return run_benchmark(settings, progress=False)


def test_rows_of_each_section(result):
    found = [(row.section, row.kind, row.heads, row.length, row.padding) for row in result.rows]
    assert found[:4] == [
        ("all", "stock", 2, 8, 0),
        ("all", "constant", 2, 8, 0),
        ("all", "stock", 2, 8, 0.25),
        ("all", "constant", 2, 8, 0.25),
    ]
    assert [one[0] for one in found[4:]] == ["halves"] * 6
    assert result.rows[5].held_bytes == 2 * 4 * 4 * 4


def test_the_pieces_of_a_study(result):
    assert [one.piece for one in result.study] == ["calibration and ranking", "share 0", "share 0.5"]
    for one in result.study:
        assert 0 < sum(one.parts.values()) <= one.seconds
    assert {"encoder", "storing", "probes"} <= set(result.study[2].parts)


def test_the_study_is_of_the_sizes_that_were_asked_for(monkeypatch):
    seen = []
    monkeypatch.setattr("papa_lightning.benchmark.study_times.run_group", lambda *given: seen.append(given) or ({}, ""))
    monkeypatch.setattr("papa_lightning.benchmark.study_times.prepare", lambda *given: {})
    time_study(STUDY, torch.device("cpu"), seed=0)
    settings, _, group = seen[-1]
    asked = json.loads(settings)
    assert (group.choice.share, group.seeds) == (0.5, (0, 1))
    assert (asked["probe"]["max_epochs"], asked["device"]) == (1, "cpu")


def test_a_table_for_each_section(result):
    text = markdown(result)
    assert "all: float32, bert\n\n| batch x T |" in text
    assert "halves: bfloat16, bert\n\n| batch x T |" in text
    assert "| 2 x 8, 25 % padding | 16 | 1 | 2 | constant 100 % |" in text
    assert text.count("exponents of growth") == 1
    assert "study: 24 + 6 rows of up to 12 tokens, hidden 16, 1 layers, 2 heads; 2 probes, 1 epochs" in text
    shown = str(format_result(result))
    assert "halves: bfloat16, bert, hidden 16, 1 layers, 4 heads, 1 x 16 tokens" in shown
    assert "all: float32, bert, hidden 16, 1 layers, 2 heads, 2 x 8 tokens, 25 % padding" in shown


def test_one_file_and_no_figure(result, tmp_path):
    paths = write_benchmark(result, tmp_path)
    assert [path.name for path in paths] == ["results.json", "results.csv", "results.md"]
    again = BenchmarkResult.load(paths[0])
    assert (list(again.rows), list(again.study)) == (list(result.rows), list(result.study))
    assert markdown(again) == markdown(result)


def test_files_from_before_there_were_sections(result, tmp_path):
    content = json.loads(result.save(tmp_path)[0].read_text())
    del content["study"], content["sha256"]
    for row in content["rows"]:
        del row["section"], row["padding"], row["work"]
    (tmp_path / "old.json").write_text(json.dumps(content))
    old = BenchmarkResult.load(tmp_path / "old.json")
    assert {(row.section, row.padding, row.work) for row in old.rows} == {("", 0.0, "forward")}
    assert list(old.study) == []
    assert "constant 100 %" in markdown(old)
