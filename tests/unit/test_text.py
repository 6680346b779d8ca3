"""Names that come from files, in what people see."""

import pytest

from papa_lightning.errors import DataError, OutputError, PapaError
from papa_lightning.text import Blocks, Table, printable, tell


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("Köln ☃ 日本\u00a0x", "Köln ☃ 日本\u00a0x"),
        ("a\nb\tc", "a\nb\tc"),
        ("\x1b[2J\x1b]0;owned\x07", "\\x1b[2J\\x1b]0;owned\\x07"),
        ("a\rb\x08\x00\x7f\x9b31m", "a\\rb\\x08\\x00\\x7f\\x9b31m"),
        ("\u202egnp.exe\u2028", "\\u202egnp.exe\\u2028"),
        ("\ud800", "\\ud800"),
    ],
)
def test_controls_are_spelled_out(text, expected):
    assert printable(text) == expected
    assert printable(expected) == expected


@pytest.mark.parametrize("error", [PapaError, DataError, OutputError])
def test_errors_cannot_steer_a_terminal(error):
    assert str(error("column \x1b[31mred is missing")) == "column \\x1b[31mred is missing"


def test_what_is_told_steers_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    tell("score of \x1b[31mred\nother")
    assert capsys.readouterr().out == "score of \\x1b[31mred\nother\n"


PLAN = Blocks([Table(("kind", "score"), [("a|b", "0.8"), ("\x1b[31m", "0.81")], title="Scores"), "2 kinds"])


def test_tables_are_plain_text_where_the_output_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    tell(PLAN)
    text = "Scores\nkind      score\na|b         0.8\n\\x1b[31m   0.81\n\n2 kinds"
    assert capsys.readouterr().out == text + "\n"
    assert str(PLAN) == text


def test_tables_in_markdown() -> None:
    assert PLAN.markdown().splitlines()[:5] == ["Scores", "", "| kind | score |", "| --- | ---: |", "| a\\|b | 0.8 |"]


def test_nothing_of_a_table_is_cut_off_in_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "20")
    tell(Blocks([Table(("name", "value"), [("x" * 30, "0.8125")])]))
    shown = capsys.readouterr().out
    assert shown.count("x") == 30
    assert "0.8125" in shown
    assert "…" not in shown
