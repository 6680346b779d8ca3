"""A study of kinds: what it trains, what it finds again, what it draws."""

import json
import math
import os

import pandas as pd
import pytest
import torch

from papa_lightning import PapaError
from papa_lightning.cli.main import main
from papa_lightning.errors import ResultFileError
from papa_lightning.from_scratch import TextFileDataModule
from papa_lightning.study.comparison import run as kinds_run
from papa_lightning.study.comparison.report import kind_panels, one_number, score_curve, write_kinds_report
from papa_lightning.study.comparison.results import KindResult, kinds_overview, kinds_table, summarize_kinds
from papa_lightning.study.comparison.run import KindsStudy, cell_hashes, learning_parameters, make_variant
from papa_lightning.study.comparison.settings import KindsSettings
from papa_lightning.study.report.latex import write_latex

TEXT = "".join(chr(97 + number * number % 23) for number in range(1200))
VARIANTS = {
    "dot-2": {},
    "dot-1": {"num_heads": 1},
    "local": {"kind": "aft_local", "kind_options": {"window": 4, "per_head": False}},
}


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    data = {"files": str(tmp_path / "text.txt"), "max_length": 16, "batch_size": 4, "max_eval_blocks": 2}
    return {
        "model": {
            "class_path": "LanguageModelingTask",
            "init_args": {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "learning_rate": 0.01},
        },
        "data": {"class_path": "TextFileDataModule", "init_args": data},
        "variants": VARIANTS,
        "steps": 5,
        "accelerator": "cpu",
    }


def result(variant="a", seed=0, score=1.0, **others):
    values = {"kind": "dynamic", "metric": "bits_per_character", "loss": 2.0, "parameters": 10, "steps": 3,
              "steps_per_second": 4.0, "peak_memory_bytes": 5e6, "step_memory_bytes": 1e6, "seconds": 1.0,
              "versions": {"torch": "2"}, "hash": "1f"}  # fmt: skip
    return KindResult(variant=variant, seed=seed, score=score, **(values | others))


def test_variants_have_equal_parameters_and_their_own_attention(settings):
    study = KindsSettings(**settings)
    data = TextFileDataModule(**settings["data"]["init_args"])
    tasks = {name: make_variant(study, name, data) for name in VARIANTS}
    sizes = {name: learning_parameters(task) for name, task in tasks.items()}
    assert sizes["dot-1"] == sizes["dot-2"]
    assert 0 < abs(sizes["local"] - sizes["dot-2"]) <= 33 / 2  # half of what one column of the feed-forward has
    assert [tasks[name].encoder.config.num_attention_heads for name in VARIANTS] == [2, 1, 2]
    assert [tasks[name].hparams["kind"] for name in VARIANTS] == ["dynamic", "dynamic", "aft_local"]
    free = make_variant(KindsSettings(**settings, equal_parameters=False), "local", data)
    assert learning_parameters(free) > sizes["local"] + 33


def test_a_study_is_run_reported_and_gone_on_with(settings, tmp_path, monkeypatch):
    config, folder = tmp_path / "study.yaml", tmp_path / "study"
    config.write_text(json.dumps({"seeds": [0, 1], "kinds": settings}))
    table = main(["study", "--config", str(config), "--output", str(folder)])
    assert list(zip(table["variant"], table["seed"], strict=True)) == [(name, s) for name in VARIANTS for s in (0, 1)]
    assert (table[["steps_per_second", "parameters"]] > 0).all(axis=None)
    scores = table["score"].to_numpy()
    assert len(set(scores)) == 6, "variants and seeds differ"
    assert (abs(scores - table["loss"] / math.log(2)) < 1e-5).all()
    page = (folder / "report.html").read_text()
    assert "<svg" in page
    assert "| local | " in (folder / "kinds.md").read_text()
    assert pd.read_csv(folder / "kinds.csv")["score"].tolist() == pytest.approx(scores.tolist())
    next((folder / "cells").iterdir()).unlink()
    trained = []
    run_cell = kinds_run.run_cell
    monkeypatch.setattr(kinds_run, "run_cell", lambda *args: trained.append(args[2]) or run_cell(*args))
    again = main(["study", "--config", str(config), "--output", str(folder)])
    assert len(trained) == 1
    assert again["score"].tolist() == scores.tolist(), "the same numbers"
    page = (folder / "report.html").read_text()  # the speed of the one that was trained again is another
    (folder / "report.html").unlink()
    assert main(["report", str(folder)]).read_text() == page
    settings["variants"] = {**VARIANTS, "local": {**VARIANTS["local"], "num_heads": 4}}
    assert KindsStudy(KindsSettings(**settings), [0, 1], folder).missing() == [("local", 0), ("local", 1)]
    other = KindsStudy(KindsSettings(**settings), [7], tmp_path / "other")
    other.folder.write({"kinds": settings, "seeds": [7]}, {}, {"cells": ["cells/1f.json"]})
    with pytest.raises(PapaError, match="no finished training"):
        write_kinds_report(tmp_path / "other")


def test_what_was_not_measured_has_no_panel():
    complete, partial = (
        kind_panels(summarize_kinds(kinds_table([result(steps_per_second=speed), result("b", steps_per_second=speed)])))
        for speed in (2.0, math.nan)
    )
    assert [axes.get_xlabel() for axes in complete.axes] == [
        "bits per character", "steps per second", "memory of a step (MB)", "parameters (thousands)"
    ]  # fmt: skip
    low, high = complete.axes[3].get_xlim()
    assert high - low > 0.05 * 10 / 1e3, "equal parameters do not look different"
    assert len(partial.axes) == 3
    assert [tick.get_text() for tick in partial.axes[0].get_yticklabels()] == ["a", "b"]


def test_variants_that_differ_in_one_number_make_a_curve(settings, tmp_path):
    windows = {f"w{size}": {"kind": "aft_local", "kind_options": {"window": size}} for size in (2, 8)}
    study = KindsSettings(**(settings | {"variants": windows}))
    assert one_number(study) == ("kind_options.window", {"w2": 2, "w8": 8})
    for others in (VARIANTS, {"a": {}}, {"a": {}, "b": {"kind": "additive"}}, {"a": {}, "b": {"dropout": 0.0}}):
        assert one_number(KindsSettings(**(settings | {"variants": others}))) is None
    table = kinds_table(
        [result("w8", seed, 2.0 + seed) for seed in (0, 1)] + [result("w2", seed, 1.0 + seed) for seed in (0, 1)]
    )
    figure = score_curve(summarize_kinds(table), table, *one_number(study))
    (axes,) = figure.axes
    line = next(one for one in axes.lines if one.get_linestyle() == "-")
    assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == ([2, 8], [1.5, 2.5])
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("window", "bits per character")
    folder = tmp_path / "study"
    store = KindsStudy(study, [0], folder).folder
    cells = [result(name, 0, 1.0).save(store.cell(name)) for name in windows]
    noted = {"cells": [store.relative(path) for path in cells]}
    store.write({"kinds": settings | {"variants": windows}, "seeds": [0]}, {}, noted)
    assert write_kinds_report(folder).read_text().count("<figure>") == 2
    assert all(f"\n{name} & " in write_latex(folder).read_text() for name in windows)
    assert (folder / "figures" / "curve.svg").exists()


def test_intervals_are_students():
    summary = summarize_kinds(
        kinds_table([result(seed=seed, score=score) for seed, score in enumerate([1.0, 2.0, 6.0])])
    )
    row = summary.iloc[0]
    half = 4.302653 * torch.tensor([1.0, 2.0, 6.0]).std().item() / math.sqrt(3)
    assert (row["score"], row["score_high"] - row["score"]) == (3.0, pytest.approx(half, rel=1e-5))
    (cells,) = kinds_overview(summary).rows
    assert cells == ("a", "3.000 ± 6.572", "2.000 ± 0.000", "4.00 ± 0.00", "5 ± 0", "1 ± 0", "10", "3")


def test_results_are_read_back_and_damaged_ones_refused(tmp_path):
    path = result(peak_memory_bytes=math.nan).save(tmp_path / "one.json")
    loaded = KindResult.load(path)
    assert math.isnan(loaded.peak_memory_bytes)
    assert loaded.hash == "1f"
    path.write_text(path.read_text().replace("score", "scare"))
    with pytest.raises(ResultFileError, match="damaged"):
        KindResult.load(path)
    assert math.isnan(result(loss=math.inf).loss)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("variant", ""),
        ("variant", 3),
        ("kind", None),
        ("metric", ["accuracy"]),
        ("seed", -1),
        ("seed", 0.5),
        ("seed", True),
        ("score", "0.5"),
        ("score", 10**400),
        ("loss", [1.0]),
        ("parameters", 1.5),
        ("steps", "10"),
        ("steps_per_second", -1.0),
        ("step_memory_bytes", {}),
        ("seconds", math.nan),
        ("versions", []),
        ("versions", {"torch": 2}),
        ("hash", None),
    ],
)
def test_results_of_other_types_are_refused_by_name(tmp_path, name, value):
    with pytest.raises(PapaError, match=rf"^{name}\b.* but must be"):
        result(**{name: value})
    path = result().save(tmp_path / "one.json")
    content = json.loads(path.read_text())
    del content["sha256"]  # as if by hand
    path.write_text(json.dumps(content))
    KindResult.load(path)
    path.write_text(json.dumps(content | {name: value}))
    with pytest.raises(ResultFileError, match=r"one\.json' is (damaged|not JSON) "):
        KindResult.load(path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"steps": 0}, r"kinds\.steps is 0"),
        ({"variants": {}}, r"kinds\.variants is {}, but must map"),
        ({"variants": {"a b": {}}}, r"kinds\.variants has the name 'a b'"),
        (
            {"variants": {"a": {"added_learning_rate": 0.1}}},
            r"kinds\.variants\.a has added_learning_rate=0\.1, but adds",
        ),
        (
            {"variants": {"a": {"kind": "additive", "added_learning_rate": 0}}},
            r"kinds\.variants\.a\.added_learning_rate is 0, but must be a number above 0",
        ),
        ({"model": {"init_args": {}}}, r"kinds\.model is .* but must have class_path"),
    ],
)
def test_bad_settings(settings, changed, message):
    with pytest.raises(PapaError, match=message):
        KindsSettings(**(settings | changed))


def test_an_argument_that_the_task_does_not_have(settings):
    study = KindsSettings(**(settings | {"variants": {"a": {"num_haeds": 1}}}))
    with pytest.raises(PapaError, match=r"kinds\.model\.num_haeds is no argument of LanguageModelingTask"):
        make_variant(study, "a", TextFileDataModule(**settings["data"]["init_args"]))


def test_a_changed_text_finds_no_old_results(settings, tmp_path):
    def hashed():
        return cell_hashes(KindsSettings(**settings), [0])

    before = hashed()
    assert hashed() == before
    moved = tmp_path / "elsewhere.txt"
    moved.write_text(TEXT)
    settings["data"]["init_args"]["files"] = str(moved)
    assert hashed() == before
    times = moved.stat().st_atime_ns, moved.stat().st_mtime_ns
    moved.write_text(TEXT[::-1])
    os.utime(moved, ns=times)
    assert set(hashed().values()).isdisjoint(before.values())
