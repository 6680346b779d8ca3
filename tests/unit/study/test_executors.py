"""Pieces of work, here and in other processes, and what ends them."""

import importlib.util
import logging
import math
import os
import signal
import subprocess
import sys
import time
import warnings
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fresh_processes import context

from papa_lightning.errors import PapaError, StudyError
from papa_lightning.study import executors
from papa_lightning.study.executors import PieceError, check_num_workers, run_pieces

SECONDS = 30
"""Long enough for a busy machine, and much shorter than the work that is to be stopped."""


def test_one_worker_keeps_the_order_and_the_process() -> None:
    assert list(run_pieces(math.sqrt, [4, 1, 9], num_workers=1)) == [(4, 2.0), (1, 1.0), (9, 3.0)]
    assert list(run_pieces(_process_of, [1], num_workers=1)) == [(1, os.getpid())]


def _process_of(piece: int) -> int:
    return os.getpid()


def _root_and_threads(piece: int) -> tuple[float, int]:
    return math.sqrt(piece), torch.get_num_threads()


def _root_that_tells(piece: int) -> tuple[float, int]:
    logging.getLogger("lightning.pytorch.utilities.rank_zero").info("what is installed here")
    warnings.warn("a name that will go", FutureWarning, stacklevel=2)
    warnings.warn("a row that is empty", stacklevel=2)
    return _root_and_threads(piece)


@pytest.mark.distributed
def test_a_spawned_worker_gives_the_same(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """As users have them: all other tests with workers have these copied from a server, which is sooner."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    assert list(run_pieces(_root_that_tells, [4], num_workers=2)) == [(4, (2.0, 3))]
    told = capfd.readouterr().err
    assert "a row that is empty" in told
    assert "what is installed here" not in told
    assert "a name that will go" not in told


@pytest.mark.distributed
@pytest.mark.usefixtures("quick_workers")
def test_two_workers_give_the_same_and_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    found = sorted(run_pieces(_root_and_threads, [4, 1, 9], num_workers=2))
    assert found == [(1, (1.0, 3)), (4, (2.0, 3)), (9, (3.0, 3))]


@pytest.mark.distributed
@pytest.mark.usefixtures("quick_workers")
def test_an_error_of_a_worker_is_raised() -> None:
    with pytest.raises(PieceError, match=r"^piece -1: ValueError: .*(math domain error|nonnegative)") as caught:
        list(run_pieces(math.sqrt, [-1, 4], num_workers=2, name="piece {}".format))
    assert not isinstance(caught.value, PapaError), "nobody meant it"
    assert len(str(caught.value).splitlines()) == 1
    assert "in _do" in str(caught.value.__cause__), "its traceback is not lost"


def _fill_the_disk(piece: int) -> None:
    raise OSError(28, "No space left on device")


def test_what_the_machine_does_is_no_fault() -> None:
    with pytest.raises(StudyError, match=r"^1: OSError: .*No space left on device$"):
        list(run_pieces(_fill_the_disk, [1], num_workers=1))


def _refuse(piece: int) -> None:
    raise PapaError("rank is 0,\n  but must be above it.")


def test_an_error_of_a_piece_names_it_on_one_line() -> None:
    with pytest.raises(StudyError, match=r"^piece 3: rank is 0, but must be above it\.$"):
        list(run_pieces(_refuse, [3], num_workers=1, name="piece {}".format))


@pytest.mark.parametrize("number", [0, -1, 1.0, "2", True, None, 10**9])
def test_numbers_of_workers_that_cannot_be_meant(number: Any) -> None:
    with pytest.raises(StudyError, match=f"num_workers is {number!r}, but"):
        run_pieces(abs, [], num_workers=number)


def test_a_cluster_may_have_more_workers() -> None:
    check_num_workers(10**6, "ray")


def _note_and_wait(piece: tuple[str, int]) -> None:
    """Say that it began, and where; the pieces from 2 on are done at once."""
    folder, number = piece
    (Path(folder) / f"{number}.began").write_text(str(os.getpid()))
    if number < 2:
        time.sleep(600)


def _begun(folder: Path, number: int) -> list[int]:
    """The processes that have begun a piece, once there are so many."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        found = [text for path in folder.glob("*.began") if (text := path.read_text())]
        if len(found) >= number:
            return [int(text) for text in found]
        time.sleep(0.02)
    raise AssertionError("no piece has begun")


def _lives(process: int) -> bool:
    if not Path("/proc/self/stat").exists():
        return subprocess.run(["ps", "-p", str(process)], stdout=subprocess.DEVNULL, check=False).returncode == 0
    try:  # one that has ended and that nobody has asked for stays as a zombie
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _gone(processes: list[int]) -> bool:
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        if not any(map(_lives, processes)):
            return True
        time.sleep(0.02)
    return False


def _fail_beside_others(piece: tuple[str, int]) -> None:
    if piece[1] == 2:
        _begun(Path(piece[0]), 1)
        raise PapaError("this one is bad")
    _note_and_wait(piece)


@pytest.mark.distributed
@pytest.mark.usefixtures("quick_workers")
def test_a_piece_that_fails_stops_the_others(tmp_path: Path) -> None:
    pieces = [(str(tmp_path), number) for number in (0, 2, 3, 4)]
    start = time.monotonic()
    with pytest.raises(StudyError, match=r"2\): this one is bad"):
        list(run_pieces(_fail_beside_others, pieces, num_workers=2))
    assert time.monotonic() - start < 60
    assert _gone(_begun(tmp_path, 1))
    assert [path.name for path in tmp_path.iterdir()] == ["0.began"], "what waited is not begun"


@pytest.mark.distributed
@pytest.mark.usefixtures("quick_workers")
def test_workers_end_with_the_generator(tmp_path: Path) -> None:
    running = run_pieces(_note_and_wait, [(str(tmp_path), number) for number in (2, 0, 1)], num_workers=2)
    assert next(running)[0][1] == 2
    processes = _begun(tmp_path, 3)
    running.close()
    assert _gone(processes)


def _kill_itself(piece: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.distributed
@pytest.mark.usefixtures("quick_workers")
def test_a_worker_that_is_killed_is_told_with_its_piece() -> None:
    with pytest.raises(StudyError, match=r"^7: its worker process \d+ was killed by signal 9.*num_workers"):
        list(run_pieces(_kill_itself, [7], num_workers=2))


@pytest.mark.distributed
@pytest.mark.usefixtures("quick_workers")
def test_what_cannot_be_sent_is_an_error_of_its_piece() -> None:
    with pytest.raises(PieceError, match=r"^[12]: \w+: .*pickle"):
        list(run_pieces(_a_function, [1, 2], num_workers=2))


def _a_function(piece: int) -> Any:
    return lambda: piece


def _study(folder: str, method: str) -> None:
    """A first process with two workers that are at work."""
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGHUP):  # ignored where the tests run under nohup
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored where the tests run in the background
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    setattr(executors, "get_context", lambda _: get_context(method))  # noqa: B010
    try:
        list(run_pieces(_note_and_wait, [(folder, number) for number in range(4)], num_workers=2))
    except KeyboardInterrupt:
        (Path(folder) / "interrupted").touch()


def _start(folder: Path) -> tuple[BaseProcess, list[int]]:
    process = context.Process(target=_study, args=(str(folder), "fork"))
    process.start()
    return process, _begun(folder, 2)


@pytest.mark.distributed
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_workers_end_with_the_first_process_whatever_ends_it(number: int, tmp_path: Path) -> None:
    process, workers = _start(tmp_path)
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join(SECONDS)
    assert process.exitcode == -number
    assert _gone(workers)


@pytest.mark.distributed
@pytest.mark.parametrize("group", [True, False])
@pytest.mark.parametrize("times", [1, 3])
def test_ctrl_c_stops_all(times: int, group: bool, tmp_path: Path) -> None:
    """In a terminal Ctrl-C reaches the whole group, and may be pressed repeatedly."""
    process, workers = _start(tmp_path)
    assert process.pid is not None
    for _ in range(times):
        (os.killpg if group else os.kill)(process.pid, signal.SIGINT)
    process.join(SECONDS)
    assert not process.is_alive()
    assert _gone(workers)
    assert (tmp_path / "interrupted").exists() or times > 1
    assert not (tmp_path / "2.began").exists()


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_ray_is_asked_for_by_name() -> None:
    with pytest.raises(StudyError, match=r"papa-lightning\[ray\]"):
        list(run_pieces(math.sqrt, [1], num_workers=1, backend="ray"))


def test_ray_gives_the_same() -> None:
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=1, include_dashboard=False)  # one worker starts sooner than two, and without a page sooner still
    try:
        found = sorted(run_pieces(math.sqrt, [4, 1, 9], num_workers=2, backend="ray"))
    finally:
        ray.shutdown()
    assert found == [(1, 1.0), (4, 2.0), (9, 3.0)]


def test_what_waits_on_ray_is_cancelled_when_a_piece_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a substitute, which does a piece when it is asked for."""
    cancelled: list[tuple[Any, bool]] = []

    class Reference:
        def __init__(self, function: Any, *arguments: Any) -> None:
            self.call = lambda: function(*arguments)

    substitute = SimpleNamespace(
        init=lambda **settings: None,
        remote=lambda function: SimpleNamespace(remote=lambda *given: Reference(function, *given)),
        wait=lambda references, num_returns: (references[:num_returns], references[num_returns:]),
        get=lambda reference: reference.call(),
        cancel=lambda reference, force: cancelled.append((reference, force)),
        exceptions=SimpleNamespace(RayError=OSError),
    )
    monkeypatch.setitem(sys.modules, "ray", substitute)
    running = run_pieces(math.sqrt, [4, -1, 9, 16], num_workers=2, backend="ray")
    assert next(running) == (4, 2.0)
    with pytest.raises(PieceError, match=r"^-1: ValueError: "):
        next(running)
    assert len(cancelled) == 2
    assert all(force for _, force in cancelled)


def test_one_process_works_on_each_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.warns(UserWarning, match="num_workers is 3, but there are 2 GPUs, .* 2 will work. Pass 2"):
        assert executors.useful_workers(3, "processes", gpu) == 2
    with pytest.warns(UserWarning, match=r"num_workers is 3, but there is one GPU \(cuda:1\), .* 1 will work"):
        assert executors.useful_workers(3, "processes", torch.device("cuda:1")) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert executors.useful_workers(1, "processes", gpu) == 1
        assert executors.useful_workers(2, "processes", gpu) == 2
        assert executors.useful_workers(3, "ray", gpu) == 3
        assert executors.useful_workers(3, "processes", torch.device("cpu")) == 3


def _wait_for_the_gpu(piece: int) -> tuple[int, list[int]]:
    """The process, and the GPUs that were made its current device; long enough for every worker to have a piece."""
    time.sleep(0.5)
    return os.getpid(), getattr(torch.accelerator, "chosen", [])


@pytest.mark.distributed
def test_every_worker_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU: forked workers note which one they are told to take."""
    monkeypatch.setattr(torch.accelerator, "chosen", [], raising=False)
    monkeypatch.setattr(torch.accelerator, "set_device_index", vars(torch.accelerator)["chosen"].append)
    monkeypatch.setattr(executors, "get_context", lambda method: get_context("fork"))
    found = dict(outcome for _, outcome in run_pieces(_wait_for_the_gpu, [1, 2, 3], num_workers=3, gpus=2))
    assert sorted(map(tuple, found.values())) == [(0,), (0,), (1,)]
    found = dict(outcome for _, outcome in run_pieces(_wait_for_the_gpu, [1, 2], num_workers=2))
    assert list(found.values()) == [[], []], "on a CPU none"
