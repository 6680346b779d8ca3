"""Where every error of the command line ends: in one line, or as a fault of ours with a file to report it by.

Nothing is listed that may pass. Where an error comes from decides: what our own code did not mean to raise is our
fault, and everything else is of the input, of other code, or of the machine.
"""

from __future__ import annotations

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

import torch

from papa_lightning import errors as exceptions
from papa_lightning.configuration import account
from papa_lightning.either_lightning import MisconfigurationException, SIGTERMException
from papa_lightning.errors import PapaError, explanation
from papa_lightning.text import printable

#: Exit codes: something outside of papa_lightning has to be mended; a fault of papa_lightning; signals, as of shells.
MENDABLE, FAULT, INTERRUPTED, TERMINATED = 2, 1, 130, 143

_HERE = Path(__file__).parents[1]
_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
#: What the machine or a file does to code that is right, wherever it meets it.
_OUTER = (OSError, MemoryError, torch.OutOfMemoryError, RecursionError, UnicodeError)
_UNLIKE = re.compile(r"Error\(s\) in loading state_dict for (\w+):\s*(.*)", re.DOTALL)
_TRACEBACK = "Traceback (most recent call last):"
_FRAME = re.compile(r'^\s*File "([^"]*)", line (\d+)(?:, in (\S+))?')
#: Where Lightning hands out what a checkpoint holds, also to code of ours.
_RESTORING = re.compile(r"checkpoint_connector\.py:(_?restore|resume)")
_SHOW = "PAPA_DEBUG=1 shows the traceback"
_LONGEST = 700


@dataclass(frozen=True)
class Origin:
    """What an error says and where it was raised, also when that was in another process and only text came back.

    Args:
        kind: Name of its class.
        message: One line.
        frames: File, line and function of each call, the one that raised last.
        meant: It is a PapaError.
    """

    kind: str
    message: str
    frames: Sequence[tuple[str, int, str]]
    meant: bool

    @property
    def ours(self) -> bool:
        """Whether code of papa_lightning raised it, and not because of what a checkpoint holds."""
        return bool(self.frames) and _HERE in Path(self.frames[-1][0]).parents and not self.restoring

    @property
    def restoring(self) -> bool:
        """Whether a checkpoint was being restored."""
        return any(_RESTORING.search(f"{file}:{name}") for file, _, name in self.frames)

    @property
    def place(self) -> str | None:
        """The innermost line of code that is no library's and not ours: of a class that the user wrote."""
        for file, line, _ in reversed(self.frames):
            if _HERE in Path(file).parents:
                return None
            if not file.startswith(("<", *_LIBRARIES)):
                return f"{os.path.relpath(file)}:{line}"
        return None


def origin(error: BaseException) -> Origin:
    """Find out what an error says and where it was raised.

    Args:
        error: Any error; one that another process sent says in its text, or in that of its cause, where it was raised.
    """
    frames = [(frame.filename, frame.lineno or 0, frame.name) for frame in traceback.extract_tb(error.__traceback__)]
    text, sent = str(error), getattr(error.__cause__, "tb", None)
    kind, meant = type(error).__name__, isinstance(error, PapaError)
    if isinstance(sent, str) and _TRACEBACK in sent:  # of a pool of processes: the error itself is whole
        frames = _frames(sent)
    elif _TRACEBACK in text:  # of a worker of a data loader, a forked rank, Ray: all is text
        frames, (kind, text) = _frames(text), _last(text)
        meant = meant or isinstance(getattr(exceptions, kind, None), type)
    return Origin(kind, _one_line(text), frames, meant)


def error_line(error: BaseException) -> str | None:
    """What the command line prints of an error that is no fault of ours.

    Args:
        error: Any error.

    Returns:
        One line; None for a fault of ours.

    Example:
        >>> error_line(PapaError("batch_size is 0, but must be at least 1."))
        'batch_size is 0, but must be at least 1.'
    """
    # Parsers wrap what a constructor raises in these two; any other error beside a PapaError is a fault of its own.
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
    unlike = _UNLIKE.match(found.message) if found.kind == "RuntimeError" else None
    if unlike:  # torch lists every key, on pages
        keys = shorten(unlike.group(2), 160, placeholder=" …")
        return f"ckpt_path is no checkpoint of this {unlike.group(1)}, but of another model: {keys} ({_SHOW})"
    if found.kind == MisconfigurationException.__name__:
        return f"{found.message} ({_SHOW})"
    place = f"{found.place}: " if found.place else "ckpt_path does not fit this run: " if found.restoring else ""
    return f"{place}{found.kind}{': ' * bool(found.message)}{found.message} ({_SHOW})"


@contextmanager
def closing(words: object) -> Iterator[None]:
    """Let no error out of a command but as an exit with a code and a line on stderr.

    Args:
        words: The command, for a report.

    Raises:
        SystemExit: In place of any error. With PAPA_DEBUG=1 in the environment the error itself.
    """
    try:
        yield
        _flush()
    except SystemExit as stop:
        try:
            _flush()  # of --help
        except OSError as error:
            _leave(error, None)
        _leave(stop, _signal(stop))
    except BaseException as error:
        if os.environ.get("PAPA_DEBUG") == "1" or not isinstance(error, (Exception, KeyboardInterrupt)):
            raise
        _leave(error, INTERRUPTED if isinstance(error, KeyboardInterrupt) else None, words)


def _signal(stop: SystemExit) -> int | None:
    """The code of a signal that Lightning turned into an exit of its own, which could pass for success."""
    if isinstance(stop, SIGTERMException):
        return TERMINATED
    return INTERRUPTED if isinstance(stop.__context__, KeyboardInterrupt) else None


def _leave(error: BaseException, signal: int | None, words: object = None) -> NoReturn:
    if signal is not None:
        name = "Ctrl-C" if signal == INTERRUPTED else "SIGTERM"
        told = str(error) if isinstance(error, KeyboardInterrupt) else ""
        _say(f"papa: Interrupted: {told or f'by {name}. Files that were finished stay; none is half written.'}")
        raise SystemExit(signal) from None
    if isinstance(error, SystemExit):
        raise error
    with suppress(OSError, ValueError):
        _flush()
    try:
        line = error_line(error)
    except Exception:  # of an error that cannot even be looked at, as little as it may be
        line = f"{type(error).__name__} ({_SHOW})"
    if line is None:
        _say(_report(error, words))
        raise SystemExit(FAULT) from error
    _say(f"papa: error: {line}")
    raise SystemExit(MENDABLE) from error


def _report(error: BaseException, words: object) -> str:
    """Put a fault of ours into a file, and tell of it."""
    from papa_lightning.runtime import versions  # brings tables, which few commands need

    whole = "".join(traceback.format_exception(error))
    command = f"papa {' '.join(words)}" if isinstance(words, list) else f"papa, called with {words!r}"
    facts = "\n".join(f"{name} {version}" for name, version in versions().items())
    found = origin(error)
    file, line, _ = found.frames[-1]
    fault = f"{found.kind}: {found.message} ({Path(file).relative_to(_HERE)}:{line})"
    try:
        handle, path = tempfile.mkstemp(prefix="papa-fault-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as report:
            report.write(f"{command}\n\n{facts}\n\n{whole}")
    except OSError:  # no room, or nowhere to write
        return f"{whole}papa: a fault of papa_lightning, not of the input: {fault}\nPlease report it, with these lines."
    return (
        f"papa: a fault of papa_lightning, not of the input: {fault}\n"
        f"Please report it, with {path}: command, versions and traceback are in it ({_SHOW} here)."
    )


def _say(text: str) -> None:
    with suppress(OSError, ValueError):  # stderr may be closed, or full
        print(printable(text), file=sys.stderr, flush=True)


def _flush() -> None:
    """Write what stdout holds back; where that fails, point it to nowhere: the interpreter tries again at its end."""
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


def _frames(text: str) -> list[tuple[str, int, str]]:
    """The frames of the last traceback in a text."""
    last = text[text.rindex(_TRACEBACK) :]
    matches = (_FRAME.match(line) for line in last.splitlines())
    return [(match.group(1), int(match.group(2)), match.group(3) or "") for match in matches if match]


def _last(text: str) -> tuple[str, str]:
    """Class and message of the last traceback in a text: what stands behind its frames, which are indented."""
    lines = text[text.rindex(_TRACEBACK) :].strip().splitlines()
    end = max(number for number, line in enumerate(lines) if number == 0 or _FRAME.match(line))
    told = [line for line in lines[end + 1 :] if not line.startswith("    ")]
    kind, _, message = "\n".join(told).partition(": ")
    return kind.rpartition(".")[2].strip(), message


def _is_outer(kind: str) -> bool:
    """Whether a class that is known by its name only is one of those that the machine causes."""
    return kind in {one.__name__ for one in _OUTER} | {one.__name__ for one in OSError.__subclasses__()}


def _one_line(text: str) -> str:
    return shorten(text, _LONGEST, placeholder=" …")
