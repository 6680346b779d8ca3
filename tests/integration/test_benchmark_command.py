"""`papa benchmark`, as a user runs it, on the shipped configurations."""

import gc
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from papa_lightning.benchmark import BenchmarkSettings, ShapeSettings, StudyTiming
from papa_lightning.cli.main import main

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import make_performance_tables as tables  # noqa: E402

sys.path.pop(0)

CONFIGS = sorted((ROOT / "papa_lightning" / "configs" / "benchmark").glob("*.yaml"))
TINY = next(path for path in CONFIGS if path.stem == "tiny")


def test_the_tiny_one_through_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    result: Any = main(["benchmark", "--config", str(TINY), "--output", "out"])
    printed = capfd.readouterr()
    assert "bert, hidden 16, 1 layers, 2 heads, 2 x 8 tokens" in printed.out
    assert "constant 100 %" in printed.out
    assert "USDT" not in printed.err  # the profiler's library is silent
    content = json.loads(Path("out/results.json").read_text())
    assert [row["kind"] for row in content["rows"]] == [row.kind for row in result.rows]
    assert content["settings"]["inputs"] == ["2x4", "2x8"]
    assert content["about"]["threads"] == 1
    assert str(tmp_path) not in json.dumps(content)
    for name in ("results.csv", "results.md", "speed.svg", "speed.png"):
        assert f"written  out/{name}" in printed.out
        assert Path("out", name).stat().st_size > 100

    page = tmp_path / "page.md"
    begin, end = tables.markers("out")
    page.write_text(f"before\n{begin}old\n{end}after\n")
    monkeypatch.setattr("sys.argv", ["", str(tmp_path), "--page", str(page)])
    tables.main()
    text = page.read_text()
    assert text.startswith(f"before\n{begin}\nbert; ")
    assert text.endswith(f"{end}after\n")
    assert Path("out/results.md").read_text().strip() in text
    assert "old" not in text
    (figure,) = re.findall(r"\((figures/.*svg)\)", text)
    assert (tmp_path / figure).read_bytes() == Path("out/speed.svg").read_bytes()


def test_the_page_has_a_place_for_each_benchmark_of_make_bench() -> None:
    makefile = (ROOT / "Makefile").read_text()
    names = re.findall(r"^BENCHMARKS := (.*)$", makefile, flags=re.MULTILINE)[0].split()
    assert set(names) == {path.stem for path in CONFIGS} - {"tiny", "gpu"}
    for name in [*names, "gpu"]:
        tables.with_tables(tables.PAGE.read_text(encoding="utf-8"), name, "")
    with pytest.raises(SystemExit, match="no markers for other"):
        tables.with_tables("text", "other", "")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configurations(path: Path) -> None:
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    nested = {"shape": ShapeSettings(**values["shape"])}
    if "study" in values:
        nested["study"] = StudyTiming(**values["study"])
    settings = BenchmarkSettings(**values | nested)
    assert settings.repeats >= 7
    assert f"papa benchmark --config {path.name} " in path.read_text(encoding="utf-8")


def made_tiny(values: dict[str, Any]) -> dict[str, Any]:
    """The settings of a section, or of all, for a tiny encoder with padding on the CPU."""
    tiny: dict[str, Any] = {"inputs": ["2x16"], "padding": 0.3 if "padding" in values else 0}
    if "shape" in values:
        tiny["shape"] = values["shape"] | {"hidden": [16], "heads": [2], "layers": [1]}
    if "backends" in values:
        tiny["backends"] = [name for name in values["backends"] if name not in ("graph", "compile", "flash")] or [
            "sdpa"
        ]
    if "options" in values:
        tiny["options"] = {kind: {"window": 4} for kind in values["options"]}
    return values | tiny


def test_the_benchmark_of_a_gpu_in_tiny_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = yaml.safe_load(next(path for path in CONFIGS if path.stem == "gpu").read_text(encoding="utf-8"))
    assert {"forward", "packed", "training", "calibration", "attention-free"} <= set(values["sections"])
    assert any("graph" in section.get("backends", ()) for section in values["sections"].values())
    sections = {name: made_tiny(section) for name, section in values["sections"].items()}
    cpu = {"sections": sections, "study": None, "device": "cpu", "threads": 1, "repeats": 7, "warmup": 0}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(made_tiny(values) | cpu, sort_keys=False))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gc, "collect", lambda: 0)  # of every size; it takes long in a process with so many modules
    result: Any = main(["benchmark", "--config", "small.yaml", "--output", "out"])
    assert {row.section for row in result.rows} == set(sections)
    assert Path("out/results.md").read_text().count("| batch x T |") == len(sections)


def test_errors_are_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for words, message in (
        (["--shape.heads", "[5]"], "shape.heads has 5, which does not divide shape.hidden 384"),
        (["--nothing", "1"], "--nothing"),
        (["--config", "gpu.yaml", "--device", "cpu"], "backends has 'graph', a CUDA graph, but device is cpu"),
        (["--output", str(tmp_path / "file" / "x"), "--device", "cpu"], "output is"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["benchmark", *words])
        error = capsys.readouterr().err
        assert stopped.value.code == 2
        assert message in error
        assert error.count("\n") == 1
