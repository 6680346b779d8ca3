"""Execution of pieces of work in this process, in worker processes, or on a Ray cluster."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import threading
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, Literal, TypeVar, cast

import torch

from papa_lightning.checks import most_processes
from papa_lightning.errors import PapaError, StudyError

Piece = TypeVar("Piece")
Result = TypeVar("Result")
Backend = Literal["processes", "ray"]
"""Processes of this machine, or a Ray cluster."""

#: Errors of the machine rather than of the code.
_OUTER = (OSError, MemoryError, torch.OutOfMemoryError, RecursionError, UnicodeError)
#: Seconds for a dismissed worker to end.
_PATIENCE = 10.0


def run_pieces(
    function: Callable[[Piece], Result],
    pieces: Sequence[Piece],
    num_workers: int,
    backend: Backend = "processes",
    name: Callable[[Piece], str] = str,
    gpus: int = 0,
) -> Generator[tuple[Piece, Result], None, None]:
    """Do pieces of work by an importable function, and yield each when done; a failure or Ctrl-C kills the workers.

    With a number of `gpus`, each worker process has one of them as its current device, in turn.
    """
    check_num_workers(num_workers, backend)
    outcomes = _run_on_ray if backend == "ray" else _run_here if num_workers == 1 else _run_in_processes
    return _results(outcomes(function, pieces, num_workers, gpus), name)


def do_pieces(
    function: Callable[[Piece], Result], pieces: Sequence[Piece], done: Callable[[Piece, Result], object], **how: Any
) -> None:
    """Do pieces of work as :func:`run_pieces`, and call `done` with each that is finished and its result."""
    with closing(run_pieces(function, pieces, **how)) as results:
        for piece, result in results:
            done(piece, result)


def check_num_workers(num_workers: int, backend: Backend = "processes") -> None:
    """Refuse a number of workers that is below 1, or for processes above what the machine can hold."""
    whole = isinstance(num_workers, int) and not isinstance(num_workers, bool)
    if not whole or num_workers < 1:
        raise StudyError(f"num_workers is {num_workers!r}, but must be a whole number from 1 on; 1 starts no process.")
    if backend == "processes" and num_workers > most_processes():
        raise StudyError(
            f"num_workers is {num_workers}, but this machine has {os.cpu_count()} cores, and every worker holds an "
            f'encoder: pass at most {most_processes()}, or backend="ray" for a cluster.'
        )


def useful_workers(num_workers: int, backend: Backend, device: torch.device) -> int:
    """Number of workers that a study is no slower with: at most one for each GPU, with a warning.

    Processes take turns with a GPU, and each has an encoder and hidden states in its memory.
    """
    gpus = gpus_of(device)
    if backend != "processes" or not 0 < gpus < num_workers:
        return num_workers
    found = f"there is one GPU ({device})" if gpus == 1 else f"there are {gpus} GPUs"
    warnings.warn(
        f"num_workers is {num_workers}, but {found}, and workers that take turns with one are slower than one alone: "
        f'{gpus} will work. Pass {gpus}, or device="cpu".',
        stacklevel=3,
    )
    return gpus


def gpus_of(device: torch.device) -> int:
    """Number of GPUs behind a device: all of this machine for "cuda", one for "cuda:1", none for a CPU."""
    if device.type != "cuda":
        return 0
    return torch.cuda.device_count() if device.index is None else 1


@dataclass(frozen=True)
class _Outcome(Generic[Result]):
    """Outcome of a piece in plain values; `meant`: an error is a PapaError or of the machine, no fault of the code."""

    result: Result | None = None
    error: str | None = None
    traceback: str = ""
    meant: bool = True

    @classmethod
    def failed(cls, error: Exception) -> _Outcome[Result]:
        """The outcome of a piece that raised an error."""
        message = " ".join(str(error).split())
        if not isinstance(error, PapaError):
            message = f"{type(error).__name__}: {message}"
        return cls(error=message, traceback=traceback.format_exc(), meant=isinstance(error, (PapaError, *_OUTER)))


def _do(function: Callable[[Piece], Result], piece: Piece) -> _Outcome[Result]:
    try:
        return _Outcome(function(piece))
    except Exception as error:
        return _Outcome.failed(error)


class PieceError(ValueError):
    """A piece of work failed with an unexpected error. Its cause has the traceback, also from another process."""


class _SentError(Exception):
    """The traceback of a piece; :mod:`concurrent.futures` has the same name for its text."""

    def __init__(self, tb: str) -> None:
        super().__init__(f"\n{tb}")
        self.tb = tb


def _results(
    outcomes: Generator[tuple[Piece, _Outcome[Result]], None, None], name: Callable[[Piece], str]
) -> Generator[tuple[Piece, Result], None, None]:
    try:
        for piece, outcome in outcomes:
            if outcome.error is not None:
                kind = StudyError if outcome.meant else PieceError
                raise kind(f"{name(piece)}: {outcome.error}") from _SentError(outcome.traceback)
            yield piece, cast(Result, outcome.result)
    finally:
        outcomes.close()


def _run_here(
    function: Callable[[Piece], Result], pieces: Sequence[Piece], num_workers: int, gpus: int
) -> Generator[tuple[Piece, _Outcome[Result]], None, None]:
    for piece in pieces:
        with interruptible():
            outcome = _do(function, piece)
        yield piece, outcome


@contextmanager
def interruptible() -> Iterator[None]:
    """Pass an interruption on: Lightning's Trainer would end the process, and ignore the next interruption."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as end:
        if main and before is not None:
            signal.signal(signal.SIGINT, before)
        raise KeyboardInterrupt from end


class _Worker:
    """A process that does pieces of work until it is dismissed, or its parent has ended."""

    def __init__(self, context: Any, function: Callable[[Any], Any], threads: int, gpu: int | None) -> None:
        self.connection, self._theirs = context.Pipe()
        # No daemon: it could have no children, but data loaders need them.
        self.process: BaseProcess = context.Process(target=_work, args=(self._theirs, function, threads, gpu))

    def start(self) -> None:
        """Start it."""
        try:
            with _interrupts_held():
                self.process.start()
        except OSError as error:
            raise StudyError(f"a worker process cannot be started ({error}): pass a smaller num_workers.") from error
        finally:
            self._theirs.close()

    def send(self, message: tuple[object] | None) -> None:
        """Send it a piece, or None to dismiss it."""
        with suppress(OSError):  # it has ended, which shows when its outcome is awaited
            self.connection.send(message)

    def outcome(self) -> _Outcome[Any]:
        """The outcome of its piece, once its connection or its sentinel is ready."""
        with suppress(EOFError, OSError):
            if self.connection.poll():
                return cast("_Outcome[Any]", self.connection.recv())
        self.process.join(_PATIENCE)
        code = self.process.exitcode or 0
        how = (
            f"was killed by signal {-code}, which may be for lack of memory: pass a smaller num_workers."
            if code < 0
            else f'ended with {code}: in a script, start the study behind `if __name__ == "__main__":`.'
        )
        return _Outcome(error=f"its worker process {self.process.pid} {how}")

    def kill(self) -> None:
        """Kill it."""
        if self.process.pid is not None:  # it was started
            self.process.kill()

    def end(self) -> None:
        """Wait for its end, and kill it if it does not end."""
        if self.process.pid is not None:
            self.process.join(_PATIENCE)
            self.process.kill()
            self.process.join(_PATIENCE)
        self.connection.close()


def _run_in_processes(
    function: Callable[[Piece], Result], pieces: Sequence[Piece], num_workers: int, gpus: int
) -> Generator[tuple[Piece, _Outcome[Result]], None, None]:
    waiting, workers = deque(pieces), list[_Worker]()
    busy: dict[_Worker, Piece] = {}
    threads = max(1, torch.get_num_threads() // num_workers)
    # Not fork: a process that has used threads of torch or an accelerator cannot be forked safely.
    context = get_context("spawn")

    def give(worker: _Worker) -> None:
        if waiting:
            busy[worker] = waiting.popleft()
            worker.send((busy[worker],))
        else:
            worker.send(None)

    try:
        for number in range(min(num_workers, len(pieces))):
            workers.append(_Worker(context, function, threads, number % gpus if gpus else None))
            workers[-1].start()
            give(workers[-1])
        while busy:
            sources: dict[Any, _Worker] = {worker.connection: worker for worker in busy}
            sources |= {worker.process.sentinel: worker for worker in busy}  # ready when the process was killed
            for worker in dict.fromkeys(sources[source] for source in wait(list(sources))):
                piece, outcome = busy.pop(worker), worker.outcome()
                if outcome.error is None:  # after an error no piece is started
                    give(worker)
                yield piece, outcome
    except BaseException:
        for worker in workers:
            worker.kill()
        raise
    finally:
        for worker in workers:
            worker.end()


def _work(connection: Connection, function: Callable[[Any], Any], threads: int, gpu: int | None) -> None:
    """Loop of a worker process."""
    if gpu is not None:  # "cuda" means this one from now on
        torch.accelerator.set_device_index(gpu)
    with suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes, and the first one decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logging.disable(logging.INFO)  # every worker would tell what is installed here
    for category in (DeprecationWarning, FutureWarning):  # of libraries, for those who write code
        warnings.simplefilter("ignore", category)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(threads)  # a thread for every core in every worker would slow all of them down
    with suppress(EOFError, OSError):  # the first process has ended
        while (given := connection.recv()) is not None:
            outcome = _do(function, *given)
            try:
                connection.send(outcome)
            except (TypeError, AttributeError, pickle.PicklingError) as error:
                connection.send(_Outcome[Any].failed(error))


def _end_with_parent() -> None:
    """End this process when its parent has ended, whatever ended it."""
    parent, started_by = parent_process(), os.getppid()
    # The sentinel reports the end at once, also of a parent that is not the direct one; the process number reports it
    # where a process forked from the parent still holds the other end of the sentinel.
    while parent is not None and parent.is_alive() and os.getppid() == started_by:
        parent.join(1.0)
    os._exit(1)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Block Ctrl-C in processes that are started inside the ``with`` block, also while they import this module."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run_on_ray(
    function: Callable[[Piece], Result], pieces: Sequence[Piece], num_workers: int, gpus: int
) -> Generator[tuple[Piece, _Outcome[Result]], None, None]:
    try:
        import ray
    except ImportError as error:
        raise StudyError('backend is "ray", which is not installed: pip install "papa-lightning[ray]".') from error
    ray.init(ignore_reinit_error=True, num_cpus=num_workers if "RAY_ADDRESS" not in os.environ else None)
    remote: Any = ray.remote(_do)  # a plain function: Ray does not take what functools.partial makes
    waiting = {remote.remote(function, piece): piece for piece in pieces}
    try:
        while waiting:
            (done,), _ = ray.wait(list(waiting), num_returns=1)
            try:
                outcome = ray.get(done)
            except ray.exceptions.RayError as error:  # a worker or a machine has ended
                outcome = replace(_Outcome[Any].failed(error), meant=True)
            yield waiting.pop(done), outcome
    finally:
        for reference in waiting:
            ray.cancel(reference, force=True)
