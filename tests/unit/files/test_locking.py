"""Outputs on which one process works at a time."""

import os
import signal
import socket
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from fresh_processes import context

from papa_lightning import PapaError
from papa_lightning.files.locking import claimed


def _hold(lock: str, ready: str) -> None:
    with claimed("output", "here", Path(lock)):
        Path(ready).touch()
        time.sleep(600)


@pytest.fixture
def holder(tmp_path: Path):
    process = context.Process(target=_hold, args=(str(tmp_path / "out" / ".lock"), str(tmp_path / "ready")))
    process.start()
    while not (tmp_path / "ready").exists():
        assert process.is_alive()
        time.sleep(0.01)
    yield process
    process.kill()
    process.join()


def test_the_other_process_is_named(holder: BaseProcess, tmp_path: Path) -> None:
    with pytest.raises(PapaError) as caught, claimed("output", "out", tmp_path / "out" / ".lock"):
        pass
    told = str(caught.value)
    assert told.startswith(
        f"output is 'out', where process {holder.pid} on {socket.gethostname()} has been at work since"
    )
    assert "\n" not in told


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_with_the_process_whatever_ends_it(holder: BaseProcess, number: int, tmp_path: Path) -> None:
    assert holder.pid is not None
    os.kill(holder.pid, number)
    holder.join()
    lock = tmp_path / "out" / ".lock"
    assert lock.exists(), "what is left means nothing"
    with claimed("output", "out", lock):
        assert f'"pid": {os.getpid()}' in lock.read_text(), "and the name of the one before is gone"
    assert list(lock.parent.iterdir()) == []


def test_nothing_stays_behind_and_what_is_there_stays(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), claimed("output", "out", tmp_path / "a" / "b" / ".lock"):
            raise ZeroDivisionError
        assert list(tmp_path.iterdir()) == []
    (tmp_path / "own").mkdir()
    with claimed("output", "own", tmp_path / "own" / ".lock"):
        pass
    assert list(tmp_path.rglob("*")) == [tmp_path / "own"]
    with claimed("output", "made", tmp_path / "made" / ".lock"):
        (tmp_path / "made" / "result").touch()
    assert (tmp_path / "made" / "result").exists()


@pytest.mark.parametrize("content", [b"", b" {", b" []", b' {"pid": 1}', b"\xff" * 9])
def test_a_lock_that_says_nothing_still_holds(content: bytes, tmp_path: Path) -> None:
    with claimed("output", "out", tmp_path / ".lock"):
        (tmp_path / ".lock").write_bytes(content)
        with pytest.raises(PapaError, match="another process is at work"), claimed("output", "out", tmp_path / ".lock"):
            pass
