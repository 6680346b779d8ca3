"""The results of a study as a table of LaTeX."""

import re
from pathlib import Path

import pytest
from unit.study.synthetic_study import make_table, write_study

from papa_lightning.cli.main import main
from papa_lightning.errors import PapaError
from papa_lightning.study import summarize
from papa_lightning.study.report.latex import write_latex


def rows_of(path: Path) -> list[list[str]]:
    lines = path.read_text().splitlines()
    return [re.split(r" & ", line.removesuffix(r" \\")) for line in lines if line.endswith(r"\\")]


def test_a_row_for_each_curve_and_a_column_for_each_share(tmp_path: Path) -> None:
    shape = {"encoders": ("big_one", "b"), "tasks": ("x", "y"), "shares": (0.0, 0.9375, 1.0)}
    path = write_latex(write_study(tmp_path, maps=False, **shape))
    assert path == tmp_path / "results.tex"
    head, *rows = rows_of(path)
    assert head == ["encoder", "task", "criterion", r"0 \%", r"93.75 \%", r"100 \%"]
    assert len(rows) == 2 * 2 * 2
    assert rows[0][:3] == [r"big\_one", "x", "gate"]
    summary = summarize(make_table(**shape))
    own = summary[summary["is_score"].astype(bool) & (summary["share"] == 1.0) & (summary["criterion"] == "gate")]
    first = own.iloc[0]
    assert rows[0][5] == f"{first['mean']:.3f} [{first['low']:.3f}, {first['high']:.3f}]"
    text = path.read_text()
    assert r"\caption{accuracy by share of constant heads: means over 3 seeds, 95 \% intervals over seeds.}" in text
    assert r"\begin{tabular}{lllrrr}" in text


def test_controls_and_what_is_missing(tmp_path: Path) -> None:
    path = write_latex(write_study(tmp_path, maps=False, controls=("zero",), criteria=("gate",), seeds=(0,)))
    head, average, control = rows_of(path)
    assert head[:4] == ["encoder", "task", "constants", "criterion"]
    assert (average[2], control[2]) == ("average", "zero")
    assert control[5] == "--", "controls are not measured at a quarter"
    assert re.fullmatch(r"0\.\d{3}", average[5]), "no interval of one seed"


def test_names_of_metrics_are_text(tmp_path: Path) -> None:
    path = write_latex(write_study(tmp_path, maps=False, metric="matthews_corrcoef"))
    assert r"\caption{matthews\_corrcoef by share" in path.read_text()


def test_the_command_writes_it_and_no_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_study(tmp_path, maps=False)
    main(["report", str(tmp_path), "--latex"])
    assert capsys.readouterr().out == f"table    {tmp_path / 'results.tex'}\n"
    assert not (tmp_path / "report.html").exists()


def test_no_study_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(PapaError, match=r"has no study\.json"):
        write_latex(tmp_path)
