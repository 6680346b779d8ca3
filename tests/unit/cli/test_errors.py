"""Errors of the command line: messages, exit codes and reports."""

import errno
import multiprocessing
import os
import re
import sys
from concurrent.futures.process import _ExceptionWithTraceback, _rebuild_exc
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.multiprocessing.spawn import ProcessRaisedException
from torch.utils.data import DataLoader

import papa_lightning
from papa_lightning import PapaError
from papa_lightning.cli.errors import closing, error_line
from papa_lightning.errors import DataError

HERE = Path(papa_lightning.__file__).parent


def raised_by(file: str, error: BaseException) -> BaseException:
    """An error as if code of a file had raised it."""
    try:
        exec(compile("def work(error):\n    raise error\nwork(error)", file, "exec"), {"error": error})
    except BaseException as caught:
        return caught
    raise AssertionError


def ended(error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    with pytest.raises(SystemExit) as stopped, closing(["fit", "--nonsense"]):
        raise error
    return stopped.value.code, capsys.readouterr().err.rstrip("\n")


OURS, THEIRS, LIBRARY = str(HERE / "encoders/swap.py"), "/home/someone/project.py", torch.__file__


@pytest.mark.parametrize(
    "error",
    [
        KeyError("x"), AssertionError(), TypeError("no"), RuntimeError("shapes\nof two lines"), StopIteration(),
        IndexError("list index out of range"), NotImplementedError(), ZeroDivisionError("division by zero"),
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), OSError("without a number"), MemoryError(), EOFError(),
        torch.OutOfMemoryError("CUDA out of memory"), RecursionError("maximum recursion depth exceeded"),
        BrokenPipeError(errno.EPIPE, "Broken pipe"), ConnectionResetError(errno.ECONNRESET, "Connection reset"),
        UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "invalid"), PermissionError(errno.EACCES, "Permission denied", "x"),
        MisconfigurationException("No `x()`\n method"),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
@pytest.mark.parametrize("file", [THEIRS, LIBRARY])
def test_what_is_not_ours_is_one_line(file: str, error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    code, printed = ended(raised_by(file, error), capsys)
    assert code == 2
    assert printed.startswith("papa: error: ")
    assert "\n" not in printed
    assert "PAPA_DEBUG=1" in printed


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), MemoryError(), RecursionError()])
def test_what_the_machine_does_is_no_fault_of_ours(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    code, printed = ended(raised_by(OURS, error), capsys)
    assert (code, printed.count("\n")) == (2, 0)


def test_what_other_libraries_say_steers_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    _, printed = ended(raised_by(str(Path.cwd() / "mine.py"), ValueError("column \x1b[31mred")), capsys)
    assert "column \\x1b[31mred" in printed


def test_the_line_of_a_user_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    _, printed = ended(raised_by(str(Path.cwd() / "mine.py"), KeyError("x")), capsys)
    assert printed.startswith("papa: error: mine.py:2: KeyError: 'x' (")


@pytest.mark.parametrize("error", [KeyError("x"), AssertionError("never"), RuntimeError("shapes")])
def test_a_fault_of_ours_says_so_and_leaves_a_report(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    code, printed = ended(raised_by(OURS, error), capsys)
    assert code == 1
    assert printed.startswith("papa: a fault of papa_lightning, not of the input: ")
    assert "(encoders/swap.py:2)" in printed
    assert "Please report it" in printed
    assert len(printed.splitlines()) == 2
    report = Path(re.search(r"with (\S+\.txt)", printed).group(1))
    content = report.read_text()
    assert "papa fit --nonsense" in content
    assert "Traceback (most recent call last)" in content
    assert f"torch {version('torch')}" in content
    report.unlink()


def test_a_fault_without_room_for_a_report(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.mkstemp", full)
    code, printed = ended(raised_by(OURS, KeyError("x")), capsys)
    assert code == 1
    assert "Traceback" in printed
    assert "a fault of papa_lightning" in printed


def test_a_fault_while_an_error_is_handled_is_not_taken_for_it() -> None:
    fault, wrapped = raised_by(OURS, KeyError("a bug")), ValueError("a page of values")
    fault.__cause__ = wrapped.__cause__ = PapaError("batch_size is 0")
    assert error_line(fault) is None
    assert error_line(wrapped) == "batch_size is 0"


@pytest.mark.parametrize(
    ("error", "code", "word"),
    [(KeyboardInterrupt(), 130, "Ctrl-C"), (SIGTERMException(), 143, "SIGTERM")],
)
def test_signals(error: BaseException, code: int, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    found, printed = ended(error, capsys)
    assert found == code
    assert printed.startswith("papa: Interrupted: ")
    assert word in printed
    assert "\n" not in printed


def test_an_interrupt_that_lightning_turned_into_an_exit(capsys: pytest.CaptureFixture[str]) -> None:
    stop = SystemExit(1)
    stop.__context__ = KeyboardInterrupt()
    assert ended(stop, capsys)[0] == 130


@pytest.mark.parametrize("code", [None, 0, 3])
def test_other_exits_pass(code: int | None) -> None:
    with pytest.raises(SystemExit) as stopped, closing([]):
        sys.exit(code)
    assert stopped.value.code == code


def test_a_reader_that_has_gone(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As in `papa report ... | head -1`: what stdout held back cannot be written any more."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        with pytest.raises(SystemExit) as stopped, closing([]):
            print("much")
        assert stopped.value.code == 2
        stdout.flush()  # as the interpreter does at its end
    assert "Broken pipe" in capsys.readouterr().err


def test_debug_shows_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAPA_DEBUG", "1")
    with pytest.raises(KeyError), closing([]):
        raise KeyError


def of_a_rank(error: BaseException) -> ProcessRaisedException:
    import traceback

    text = f"\n\n-- Process 1 terminated with the following error:\n{''.join(traceback.format_exception(error))}"
    return ProcessRaisedException(text, 1, 2)


def test_errors_of_forked_ranks_end_as_their_own() -> None:
    assert error_line(of_a_rank(raised_by(OURS, DataError("text is 3: pass one.")))) == "text is 3: pass one."
    assert error_line(of_a_rank(raised_by(OURS, KeyError("x")))) is None
    assert error_line(of_a_rank(raised_by(THEIRS, KeyError("x")))).endswith("project.py:2: KeyError: 'x' (PAPA_DEBUG=1 shows the traceback)")  # fmt: skip  # noqa: E501
    killed = multiprocessing.ProcessError("process 1 terminated with signal SIGKILL")
    assert "SIGKILL" in str(error_line(raised_by(LIBRARY, killed)))


def test_errors_of_a_pool_are_judged_by_where_they_were_raised() -> None:
    def sent(error: BaseException) -> BaseException:
        wrapped = _ExceptionWithTraceback(error, error.__traceback__)
        return raised_by(LIBRARY, _rebuild_exc(*wrapped.__reduce__()[1]))

    assert error_line(sent(raised_by(OURS, KeyError("x")))) is None
    assert "KeyError" in str(error_line(sent(raised_by(THEIRS, KeyError("x")))))


class Broken(torch.utils.data.Dataset[int]):
    def __init__(self, error: Exception) -> None:
        self.error = error

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        raise self.error


@pytest.mark.parametrize("error", [DataError("text is 3: pass one."), ValueError("of mine")])
def test_errors_of_workers_of_a_data_loader(error: Exception) -> None:
    with pytest.raises(type(error)) as raised:
        next(iter(DataLoader(Broken(error), num_workers=1, multiprocessing_context="fork")))
    line = str(error_line(raised.value))
    assert "Traceback" not in line
    if isinstance(error, PapaError):
        assert line == str(error)
    else:
        assert re.fullmatch(r"\S+test_errors.py:\d+: ValueError: of mine \(.*\)", line)


def test_a_long_message_is_cut() -> None:
    assert len(str(error_line(raised_by(THEIRS, ValueError("word " * 10_000))))) < 900
