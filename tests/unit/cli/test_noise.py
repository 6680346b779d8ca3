"""What libraries print while a command works."""

import io
import logging
import os
import sys
import sysconfig
import warnings
from pathlib import Path

import pytest

from papa_lightning.cli.noise import quiet
from papa_lightning.progress import Progress

LIBRARY = str(Path(sysconfig.get_path("purelib")) / "lightning" / "x.py")


def warn(text: str, category: type[Warning] = UserWarning, file: str = LIBRARY) -> None:
    warnings.warn_explicit(text, category, file, 3, registry={})


def test_a_warning_is_one_line_and_repeats_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings(), quiet():
        warnings.simplefilter("always")
        for layer in (1, 2, 2, 13):
            warn(f"layer {layer} of\n the encoder is short")
        warn("from my code", file=str(Path.cwd() / "mine.py"))
        assert capsys.readouterr().err.splitlines() == [
            "papa: warning: layer 1 of the encoder is short",
            "papa: warning: mine.py:3: from my code",
        ]
    assert capsys.readouterr().err == "papa: warning: 3 more like 'layer 1 of the encoder is short'\n"


def test_advice_and_deprecations_of_libraries_are_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings(), quiet():
        warnings.simplefilter("always")
        warn("`isinstance(treespec, LeafSpec)` is deprecated", FutureWarning)
        warn("The number of training batches (1) is smaller than the logging interval")
        warn("mine is deprecated", FutureWarning, str(Path.cwd() / "mine.py"))
    assert capsys.readouterr().err == "papa: warning: mine.py:3: mine is deprecated\n"


def test_information_of_lightning_about_itself_is_dropped_and_ours_is_not() -> None:
    logger, stream = logging.getLogger("lightning.pytorch.utilities.rank_zero"), io.StringIO()
    handler = logging.StreamHandler(stream)
    logger.addHandler(handler)
    try:
        with quiet():
            for file in (LIBRARY, __file__):
                logger.handle(logger.makeRecord(logger.name, logging.INFO, file, 1, f"told by {file}", (), None))
            logger.handle(logger.makeRecord(logger.name, logging.WARNING, LIBRARY, 1, "a warning", (), None))
    finally:
        logger.removeHandler(handler)
    assert stream.getvalue() == f"told by {__file__}\na warning\n"


def test_all_is_as_before_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "0")
    before, filters = warnings.showwarning, list(warnings.filters)
    with quiet():
        assert os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] == "1"
        assert os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "0"
    assert "HF_DATASETS_DISABLE_PROGRESS_BARS" not in os.environ
    assert (warnings.showwarning, list(warnings.filters)) == (before, filters)
    assert not logging.getLogger("lightning.pytorch.utilities.rank_zero").filters


def test_debugging_hides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAPA_DEBUG", "1")
    before = warnings.showwarning
    with quiet():
        assert warnings.showwarning is before


def test_without_a_terminal_progress_is_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in Progress(range(3), "Work"):
        pass
    assert capsys.readouterr().err == ""  # it took less than a minute
    monkeypatch.setattr("papa_lightning.progress.INTERVAL", 0.0)
    with Progress(desc="Work", total=4) as bar:
        bar.update(1)
        bar.set_postfix_str("a part", refresh=False)
        bar.update(1)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("Work: 50 % after 00:00, ")
    assert lines[-1].endswith("to go, a part")
    assert not any("\r" in line for line in lines)


def test_in_a_terminal_progress_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    for _ in Progress(range(3), "Work", mininterval=0):
        pass
    assert "\rWork: 100%" in terminal.getvalue()
