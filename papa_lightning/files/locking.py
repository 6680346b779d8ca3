"""Outputs on which one process works at a time."""

from __future__ import annotations

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
def claimed(name: str, output: str | Path, lock: Path) -> Iterator[None]:
    """Keep other processes from an output while this one works on it.

    The operating system holds the lock, so that it ends with the process, whatever ends it. The file behind it says who
    holds it, and is removed at the end; one that a killed process left means nothing.

    Args:
        name: Of the argument, for the message.
        output: What is worked on, for the message.
        lock: The file of the lock; its folder is made when missing, and removed again where nothing else was put.

    Raises:
        PapaError: When another process works on it, with its number, its machine, and since when.
    """
    made = [folder for folder in lock.parents if not folder.exists()]
    lock.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(lock, timeout=0, thread_local=False)
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
        with suppress(OSError):  # while it is held: who opened it before will see that it is gone, and make a new one
            lock.unlink()
        held.release()
        with suppress(OSError):  # something lies in it
            for folder in made:
                folder.rmdir()


def _sign(lock: Path) -> None:
    """Note who holds a lock, behind the first byte, which is what Windows locks."""
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
