"""Locks of outputs: one process works on an output at a time."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from papa_lightning.errors import PapaError


@contextmanager
def claimed(name: str, output: str | Path, lock: Path, patience: float = 0.0) -> Iterator[None]:
    """Keep other processes from an output while this one works on it; PapaError while another one does.

    The operating system holds the lock, so that it ends with the process, also when that is killed. The lock file names
    the process, and is removed at the end, with the folders that were made for it; one that a killed process left locks
    nothing. `patience` is the number of seconds to wait for another process.
    """
    made = [folder for folder in lock.parents if not folder.exists()]
    lock.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(lock, timeout=patience, thread_local=False)
    try:
        held.acquire()
    except Timeout as error:
        raise PapaError(
            f"{name} is {str(output)!r}, where {_holder(lock)}: wait until it has ended, or pass another {name}."
        ) from error
    try:
        _sign(lock)
        yield
    finally:
        with suppress(OSError):  # before the release: a waiting process then sees that it is gone
            lock.unlink()
        held.release()
        with suppress(OSError):  # not empty
            for folder in made:
                folder.rmdir()


@contextmanager
def waiting(lock: Path) -> Iterator[None]:
    """Let one process at a time into a ``with`` block; all at once on a file system without locks.

    For work that several processes may do at once, but that is wasted then. The lock file is removed at the end.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(lock, thread_local=False)
    with suppress(OSError, NotImplementedError):
        held.acquire()
    try:
        yield
    finally:
        if held.is_locked:
            with suppress(OSError):  # before the release, as above
                lock.unlink()
            held.release()


def _sign(lock: Path) -> None:
    """Write the process of a lock after the first byte, which Windows locks."""
    since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    with suppress(OSError), lock.open("r+b") as file:
        file.seek(1)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}).encode())
        file.truncate()


def _holder(lock: Path) -> str:
    try:
        with lock.open("rb") as file:
            file.seek(1)
            noted = json.loads(file.read())
        return f"process {noted['pid']} on {noted['host']} has been at work since {noted['since']}"
    except (OSError, ValueError, TypeError, KeyError):
        return "another process is at work"
