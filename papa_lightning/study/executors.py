"""Doing pieces of work in this process, in several of this machine, or on a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any, Literal, TypeVar

import torch

from papa_lightning.exceptions import StudyError

Piece = TypeVar("Piece")
Result = TypeVar("Result")
Backend = Literal["processes", "ray"]
"""Where the workers are."""


def run_pieces(
    function: Callable[[Piece], Result], pieces: Sequence[Piece], num_workers: int, backend: Backend = "processes"
) -> Iterator[tuple[Piece, Result]]:
    """Do pieces of work, and give each as it is done.

    Args:
        function: Importable by name; it takes and returns plain values.
        pieces: What to do, the first first.
        num_workers: How many at a time; 1 stays in this process.
        backend: ``"processes"`` of this machine, which share its cores, or ``"ray"``.

    Yields:
        The pieces that are done, with what came out.

    Raises:
        StudyError: When Ray is asked for and not installed.

    Example:
        >>> sorted(run_pieces(abs, [-1, 2], num_workers=1))
        [(-1, 1), (2, 2)]
    """
    if backend == "ray":
        yield from _run_on_ray(function, pieces, num_workers)
    elif num_workers == 1:
        for piece in pieces:
            yield piece, function(piece)
    else:
        yield from _run_in_processes(function, pieces, num_workers)


def _run_in_processes(
    function: Callable[[Piece], Result], pieces: Sequence[Piece], num_workers: int
) -> Iterator[tuple[Piece, Result]]:
    threads = max(1, torch.get_num_threads() // num_workers)
    # Not fork: a process that has used torch's threads, or an accelerator, cannot be copied.
    with ProcessPoolExecutor(num_workers, get_context("spawn"), initializer=_begin, initargs=(threads,)) as pool:
        futures = {pool.submit(function, piece): piece for piece in pieces}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _begin(threads: int) -> None:
    """Share the cores: as many threads in every worker as there are cores would be in each other's way."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(threads)


def _run_on_ray(
    function: Callable[[Piece], Result], pieces: Sequence[Piece], num_workers: int
) -> Iterator[tuple[Piece, Result]]:
    try:
        import ray
    except ImportError as error:
        raise StudyError('backend is "ray", which is not installed: pip install "papa-lightning[ray]".') from error
    ray.init(ignore_reinit_error=True, num_cpus=num_workers if "RAY_ADDRESS" not in os.environ else None)
    remote: Any = ray.remote(_call)  # a plain function: Ray does not take what functools.partial makes
    waiting = {remote.remote(function, piece): piece for piece in pieces}
    while waiting:
        (done,), _ = ray.wait(list(waiting), num_returns=1)
        yield waiting.pop(done), ray.get(done)


def _call(function: Callable[[Piece], Result], piece: Piece) -> Result:
    return function(piece)
