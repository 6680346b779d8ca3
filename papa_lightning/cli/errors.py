"""Errors of the command line: one line and an exit code, or a report of a fault of papa_lightning.

The origin of an error decides, not a list of classes: unintended errors of our own code are our faults, all others
belong to the input, to other code, or to the machine.
"""

import inspect
import os
import re
import sys
import sysconfig
import tempfile
import traceback
from argparse import ArgumentError
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import NoReturn

import papa_lightning.errors as exceptions
from papa_lightning.configuration import account
from papa_lightning.errors import PapaError, explanation
from papa_lightning.text import printable

#: Exit codes: something outside of papa_lightning has to be mended; a fault of papa_lightning; signals, as of shells.
MENDABLE, FAULT, INTERRUPTED, TERMINATED = 2, 1, 130, 143

_HERE = Path(__file__).parents[1]
#: Where the code of this package and that of libraries is.
PACKAGE = f"{_HERE}{os.sep}"
LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
#: Errors that the machine or a file causes in correct code.
_OUTER = (OSError, MemoryError, RecursionError, UnicodeError)
#: Names of classes of torch and Lightning, which are not imported for an error in the words of a command.
_OUT_OF_MEMORY, _MISCONFIGURED, _SIGTERM = "OutOfMemoryError", "MisconfigurationException", "SIGTERMException"
_TRACEBACK = "Traceback (most recent call last):"
_FRAME = re.compile(r'^\s*File "([^"]*)", line (\d+)(?:, in (\S+))?')
#: Functions of Lightning that pass on the content of a checkpoint, also to our code; tests hold them to its version.
_RESTORING = ("restore", "_restore", "resume")
_CONNECTOR = "checkpoint_connector.py"
_SHOW = "PAPA_DEBUG=1 shows the traceback"
_LONGEST = 700


@dataclass(frozen=True)
class Origin:
    """Message, on one line, and place of an error, also of one that another process sent as text."""

    kind: str  # name of the class
    message: str
    frames: Sequence[tuple[str, int, str]]  # file, line and function of each call, the innermost last
    meant: bool  # a PapaError

    @property
    def ours(self) -> bool:
        """Whether code of papa_lightning raised it, and the content of a checkpoint is not the reason."""
        return bool(self.frames) and _HERE in Path(self.frames[-1][0]).parents and not self.restoring

    @property
    def restoring(self) -> bool:
        """Whether a checkpoint was being restored."""
        return any(Path(file).name == _CONNECTOR and name.startswith(_RESTORING) for file, _, name in self.frames)

    @property
    def loading(self) -> bool:
        """Whether ``load_state_dict`` of torch refused the keys or shapes of a checkpoint."""
        if not self.frames or self.kind != "RuntimeError":
            return False
        from torch.nn import Module

        return self.frames[-1][::2] == (inspect.getfile(Module), Module.load_state_dict.__name__)

    @property
    def place(self) -> str | None:
        """The innermost line of code of the user, if it was called after ours."""
        for file, line, _ in reversed(self.frames):
            if _HERE in Path(file).parents:
                return None
            if not file.startswith(("<", *LIBRARIES)):
                return f"{os.path.relpath(file)}:{line}"
        return None


def origin(error: BaseException) -> Origin:
    """Message and place of an error."""
    frames = [(frame.filename, frame.lineno or 0, frame.name) for frame in traceback.extract_tb(error.__traceback__)]
    text, sent = str(error), getattr(error.__cause__, "tb", None)
    kind, meant = type(error).__name__, isinstance(error, PapaError)
    if isinstance(sent, str) and _TRACEBACK in sent:  # from a pool of processes: only the traceback is text
        frames, *_ = _sent(sent)
    elif _TRACEBACK in text:  # from a data loader's worker, a forked rank, Ray: all is text
        frames, kind, text = _sent(text)
        meant = meant or isinstance(getattr(exceptions, kind, None), type)
    return Origin(kind, _one_line(text), frames, meant)


def error_line(error: BaseException) -> str | None:
    """The line that the command line prints for an error; None for a fault of ours."""
    # Parsers wrap the errors of constructors in these two; any other error has its own reason.
    explained = explanation(error) if isinstance(error, (ValueError, ArgumentError)) else None
    found = origin(explained or error)
    if found.meant:
        return found.message
    if isinstance(error, ArgumentError):
        return _one_line(account(str(error)))
    if isinstance(error, OSError) and error.strerror:
        names = " -> ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
        return f"{names or found.place or found.kind}: {error.strerror} ({_SHOW})"
    if found.ours and not isinstance(error, _OUTER) and not _is_outer(found.kind):
        return None
    if found.loading:  # torch lists every key, on pages
        keys = shorten(found.message, 220, placeholder=" …")
        return f"ckpt_path is not a checkpoint of this task, but of another model: {keys} ({_SHOW})"
    if found.kind == _MISCONFIGURED:
        return f"{found.message} ({_SHOW})"
    place = f"{found.place}: " if found.place else "ckpt_path does not fit this run: " if found.restoring else ""
    return f"{place}{found.kind}{': ' * bool(found.message)}{found.message} ({_SHOW})"


@contextmanager
def closing(words: object) -> Iterator[None]:
    """Turn every error of a command into an exit code and a line on stderr; with PAPA_DEBUG=1, it stays as it is."""
    try:
        yield
        _flush()
    except SystemExit as stop:
        try:
            _flush()  # of --help
        except OSError as error:
            _leave(error, None)
        # Lightning turns signals into exits, which could pass for success.
        ended = INTERRUPTED if isinstance(stop.__context__, KeyboardInterrupt) else None
        _leave(stop, TERMINATED if type(stop).__name__ == _SIGTERM else ended)
    except BaseException as error:
        if os.environ.get("PAPA_DEBUG") == "1" or not isinstance(error, (Exception, KeyboardInterrupt)):
            raise
        _leave(error, INTERRUPTED if isinstance(error, KeyboardInterrupt) else None, words)


def _leave(error: BaseException, signal: int | None, words: object = None) -> NoReturn:
    if signal is not None:
        name = "Ctrl-C" if signal == INTERRUPTED else "SIGTERM"
        message = str(error) if isinstance(error, KeyboardInterrupt) else ""
        _say(f"papa: Interrupted: {message or f'by {name}. Files that were finished stay; none is half written.'}")
        raise SystemExit(signal) from None
    if isinstance(error, SystemExit):
        raise error
    with suppress(OSError, ValueError):
        _flush()
    try:
        line = error_line(error)
    except Exception:  # the error has no readable message
        line = f"{type(error).__name__} ({_SHOW})"
    if line is None:
        _say(_report(error, words))
        raise SystemExit(FAULT) from error
    _say(f"papa: error: {line}")
    raise SystemExit(MENDABLE) from error


def _report(error: BaseException, words: object) -> str:
    """Write a report of our fault to a file, and return what to print."""
    from papa_lightning.runtime import versions

    whole = "".join(traceback.format_exception(error))
    command = f"papa {' '.join(words)}" if isinstance(words, list) else f"papa, called with {words!r}"
    facts = "\n".join(f"{name} {version}" for name, version in versions().items())
    found = origin(error)
    file, line, _ = found.frames[-1]
    fault = f"{found.kind}: {found.message} ({Path(file).relative_to(_HERE)}:{line})"
    said = f"papa: a fault of papa_lightning, not of the input: {fault}\nPlease report it, with"
    try:
        handle, path = tempfile.mkstemp(prefix="papa-fault-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as report:
            report.write(f"{command}\n\n{facts}\n\n{whole}")
    except OSError:  # no room, or nowhere to write
        return f"{whole}{said} these lines."
    return f"{said} {path}: command, versions and traceback are in it ({_SHOW} here)."


def _say(text: str) -> None:
    with suppress(OSError, ValueError):  # stderr may be closed, or full
        print(printable(text), file=sys.stderr, flush=True)


def _flush() -> None:
    """Flush stdout; when that fails, redirect it to nowhere, because the interpreter flushes again at its end."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)
        raise


def _sent(text: str) -> tuple[list[tuple[str, int, str]], str, str]:
    """Frames, class and message of the last traceback in a text; the message follows the frames, without indent."""
    lines = text[text.rindex(_TRACEBACK) :].strip().splitlines()
    matches = {number: match for number, line in enumerate(lines) if (match := _FRAME.match(line))}
    frames = [(match[1], int(match[2]), match[3] or "") for match in matches.values()]
    rest = [line for line in lines[max(matches, default=0) + 1 :] if not line.startswith("    ")]
    kind, _, message = "\n".join(rest).partition(": ")
    return frames, kind.rpartition(".")[2].strip(), message


def _is_outer(kind: str) -> bool:
    """Whether the machine causes errors of a class, given by its name."""
    outer: list[type[Exception]] = [*_OUTER, *OSError.__subclasses__()]
    return kind in {one.__name__ for one in outer} | {_OUT_OF_MEMORY}


def _one_line(text: str) -> str:
    return shorten(text, _LONGEST, placeholder=" …")
