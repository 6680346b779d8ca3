"""What Python and notebooks show of a study, and what loggers get: of invented results."""

import logging
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from unit.study.synthetic_study import make_table, write_study

from papa_lightning.errors import PapaError, ResultFileError
from papa_lightning.study import CellResult, Evidence, Study, StudySettings, results_table, summarize
from papa_lightning.study.comparison.encoders import compare_encoders, encoder_tables
from papa_lightning.study.logged import log_study
from papa_lightning.study.predictions import Predictions
from papa_lightning.study.views import curve_figure

DATA = {"class_path": "DemoDataModule"}


def views(folder: Path, **shape: Any) -> Study:
    """A study of which only the folder is looked at."""
    if shape:
        write_study(folder, maps=False, **shape)
    return Study({"encoders": {"mini": "somewhere"}, "tasks": {"sst2": DATA}}, folder)


def test_a_study_shows_its_results(tmp_path: Path) -> None:
    study = views(tmp_path, shares=(0.0, 0.5, 1.0), seeds=(0, 1))
    assert len(study.results()) == 2 * 3 * 2 * 2, "criteria, shares, seeds, metrics"
    assert repr(study) == f"Study({str(tmp_path)!r}, 1 encoder, 1 task, 8 finished results)"
    summary = study.summary()
    assert len(summary) == 2 * 3
    assert {"mean", "low", "high", "verdict"} <= set(summary.columns)
    html = study._repr_html_()
    assert "data:image/png;base64,iVBOR" in html
    assert "mini</th>" in html
    figure: Any = study.plot()
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert figure.axes[0].get_title() == "mini · sst2"


def test_a_study_without_results_says_so(tmp_path: Path) -> None:
    study = views(tmp_path)
    assert repr(study).endswith("1 encoder, 1 task, no results yet)")
    assert "<img" not in study._repr_html_()
    with pytest.raises(ResultFileError, match="cannot be read"):
        study.results()


def test_a_figure_of_several_pairs_or_of_one() -> None:
    summary = summarize(make_table(encoders=("a", "b"), tasks=("x", "y")))
    assert [axes.get_title() for axes in curve_figure(summary).axes] == ["x", "y"]
    assert [axes.get_title() for axes in curve_figure(summary, task="y").axes] == ["y"]
    assert curve_figure(summary, "b", "y").axes[0].get_title() == "b · y"
    with pytest.raises(PapaError, match="encoder is 'c', but there are results of a, b"):
        curve_figure(summary, "c")


def test_encoders_stand_beside_each_other() -> None:
    evidence = Evidence(
        make_table(encoders=("a", "b"), tasks=("x", "y"), criteria=("gate",), controls=("zero",), seeds=(0, 1, 2))
    )
    table, summary = compare_encoders(evidence), evidence.summary
    values, differences = ["score", "low", "high", "change"], ["difference", "difference_low", "difference_high"]
    assert list(table["a"].columns) == values, "the first encoder has no difference to itself"
    assert list(table["b"].columns) == values + differences
    assert table.index.names == ["task", "metric", "criterion", "share"]
    assert len(table) == 2 * 5, "tasks, shares; no controls and no losses"
    row = summary[(summary["encoder"] == "b") & (summary["task"] == "y") & (summary["share"] == 0.5)]
    own = row[row["is_score"].astype(bool) & (row["constants"] == "average")].iloc[0]
    assert table.loc[("y", "accuracy", "gate", 0.5), ("b", "score")] == own["mean"]
    assert table.loc[("y", "accuracy", "gate", 0.5), ("b", "change")] == own["relative"]
    first, second = encoder_tables(evidence)
    assert first.title.startswith("encoders on x: accuracy (in brackets the difference to a")
    assert list(second.columns) == ["criterion", "share", "a", "b"]
    assert second.rows[2][:2] == ("gate", "50 %")
    assert second.rows[2][3].startswith(f"{own['mean']:.3f} (")
    assert encoder_tables(Evidence(make_table())) == [], "one encoder"


def test_a_missing_result_is_a_dash() -> None:
    table = make_table(encoders=("a", "b"), criteria=("gate",))
    (shown,) = encoder_tables(Evidence(table[(table["encoder"] == "a") | (table["share"] < 0.3)]))
    assert [row[3] for row in shown.rows[2:]] == ["-", "-", "-"]


def predictions(right: int, examples: int = 200) -> Predictions:
    """Of two classes, right for so many examples from the first on."""
    labels = torch.arange(examples) % 2
    predicted = torch.where(torch.arange(examples) < right, labels, 1 - labels)
    logits = torch.nn.functional.one_hot(predicted, 2).float()
    return Predictions(logits, labels, torch.arange(examples), examples, ("no", "yes"))


def results(**right: int) -> pd.DataFrame:
    """Share 0 of some encoders with one seed, each right for a number of 200 examples."""
    return results_table(
        CellResult(name, "t", "gate", 0.0, 0, 4, 0, "average", "accuracy", {"accuracy": number / 200}, 1.0, {}, name)
        for name, number in right.items()
    )


def test_differences_of_encoders_are_paired_over_the_examples() -> None:
    """b is right wherever a is, and for ten more: the interval of the difference is much narrower than that of each."""
    kept = {"a": predictions(140), "b": predictions(150)}
    row = compare_encoders(Evidence(results(a=140, b=150), lambda key: {"": kept[key]})).iloc[0]
    assert row["b", "difference"] == pytest.approx(0.05)
    assert 0.02 < row["b", "difference_low"] < 0.05 < row["b", "difference_high"] < 0.09
    assert row["b", "high"] - row["b", "low"] > 1.5 * (row["b", "difference_high"] - row["b", "difference_low"])
    same = compare_encoders(Evidence(results(a=140, b=140), lambda key: {"": kept["a"]})).iloc[0]
    assert [same["b", name] for name in ("difference", "difference_low", "difference_high")] == [0, 0, 0]


def test_other_examples_are_not_compared() -> None:
    kept = {"a": predictions(140), "b": predictions(120, 180)}
    evidence = Evidence(results(a=140, b=120), lambda key: {"": kept[key]})
    assert compare_encoders(evidence)["b"][["difference", "difference_low"]].isna().all(axis=None)
    (shown,) = encoder_tables(evidence)
    assert shown.rows[0][3] == "0.600"


def test_loggers_get_the_curves(tmp_path: Path) -> None:
    """A row for each number of constant heads, the settings, and the figure."""
    table = make_table(criteria=("gate", "random"), controls=("zero",), seeds=(0, 1))
    settings = StudySettings({"mini": "somewhere"}, {"sst2": DATA})
    logger = CSVLogger(tmp_path)
    log_study([logger], settings, summarize(table))
    folder = Path(logger.log_dir)
    logged = pd.read_csv(folder / "metrics.csv").set_index("step")
    assert list(logged.index) == [0, 2, 4, 6, 8]
    names = {"sst2/accuracy/mini/gate", "sst2/accuracy/mini/random", "sst2/accuracy/mini/zero"}
    assert set(logged.columns) == names
    own = table[table["is_score"] & (table["criterion"] == "random") & (table["constant_heads"] == 4)]
    assert logged.loc[4, "sst2/accuracy/mini/random"] == pytest.approx(own["score"].mean())
    assert (folder / "images" / "curve-mini-sst2-000000.png").is_file()
    assert "DemoDataModule" in (folder / "hparams.yaml").read_text()


def test_nothing_is_logged_without_results(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    logger = CSVLogger(tmp_path)
    log_study([logger], StudySettings({"mini": "x"}, {"sst2": DATA}), summarize(make_table().iloc[:0]))
    assert not list(tmp_path.rglob("*.csv"))
