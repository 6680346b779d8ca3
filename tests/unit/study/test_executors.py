"""Pieces of work, here and in other processes."""

import importlib.util
import math
import os

import pytest
import torch

from papa_lightning.exceptions import StudyError
from papa_lightning.study.executors import run_pieces


def test_one_worker_keeps_the_order_and_the_process() -> None:
    assert list(run_pieces(math.sqrt, [4, 1, 9], num_workers=1)) == [(4, 2.0), (1, 1.0), (9, 3.0)]
    assert list(run_pieces(_process_of, [1], num_workers=1)) == [(1, os.getpid())]


def _process_of(piece: int) -> int:
    return os.getpid()


def _root_and_threads(piece: int) -> tuple[float, int]:
    return math.sqrt(piece), torch.get_num_threads()


@pytest.mark.distributed
def test_two_workers_give_the_same_and_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spawned, as users have them: all other tests with workers have these copied from a server."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    found = sorted(run_pieces(_root_and_threads, [4, 1, 9], num_workers=2))
    assert found == [(1, (1.0, 3)), (4, (2.0, 3)), (9, (3.0, 3))]


@pytest.mark.distributed
@pytest.mark.usefixtures("quick_workers")
def test_an_error_of_a_worker_is_raised() -> None:
    with pytest.raises(ValueError, match=r"math domain error|nonnegative"):
        list(run_pieces(math.sqrt, [-1, 4], num_workers=2))


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
