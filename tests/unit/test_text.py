"""Names that come from files, in what people see."""

import pytest

from papa_lightning.errors import DataError, OutputError, PapaError
from papa_lightning.text import printable, tell


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
