"""Pieces of work, here and in other processes."""

import importlib.util
import math
import os
from functools import partial

import pytest
import torch

from papa_lightning.exceptions import StudyError
from papa_lightning.study.executors import run_pieces


def test_one_worker_keeps_the_order_and_the_process() -> None:
    assert list(run_pieces(math.sqrt, [4, 1, 9], num_workers=1)) == [(4, 2.0), (1, 1.0), (9, 3.0)]
    assert list(run_pieces(_process_of, [1], num_workers=1)) == [(1, os.getpid())]


def _process_of(piece: int) -> int:
    return os.getpid()


@pytest.mark.distributed
def test_two_workers_give_the_same() -> None:
    assert sorted(run_pieces(math.sqrt, [4, 1, 9], num_workers=2)) == [(1, 1.0), (4, 2.0), (9, 3.0)]


@pytest.mark.distributed
def test_workers_share_the_cores() -> None:
    threads = torch.get_num_threads()
    found = dict(run_pieces(partial(divmod, 7), [1, 2], num_workers=2))
    assert found == {1: (7, 0), 2: (3, 1)}
    assert torch.get_num_threads() == threads


@pytest.mark.distributed
def test_an_error_of_a_worker_is_raised() -> None:
    with pytest.raises(ValueError, match=r"math domain error|nonnegative"):
        list(run_pieces(math.sqrt, [-1, 4], num_workers=2))


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_ray_is_asked_for_by_name() -> None:
    with pytest.raises(StudyError, match=r"papa-lightning\[ray\]"):
        list(run_pieces(math.sqrt, [1], num_workers=1, backend="ray"))


def test_ray_gives_the_same() -> None:
    ray = pytest.importorskip("ray")
    try:
        found = sorted(run_pieces(math.sqrt, [4, 1, 9], num_workers=2, backend="ray"))
    finally:
        ray.shutdown()
    assert found == [(1, 1.0), (4, 2.0), (9, 3.0)]
