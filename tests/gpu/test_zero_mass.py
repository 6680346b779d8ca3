"""The warning of tokens that attend to nothing, without a wait."""

import copy
import warnings

import pytest
import torch

from papa_lightning.attention import ZeroMassRecord, ZeroMassWarning, ZeroMassWatch

CONSTANTS = torch.eye(4).expand(2, 4, 4).clone()
CONSTANTS[1, 3] = 0


def test_it_comes_with_a_later_batch(device: torch.device) -> None:
    watch, constants = ZeroMassWatch(), CONSTANTS.to(device)
    short, whole = torch.tensor([[1, 1, 1, 0]], device=device), torch.ones(1, 4, device=device)
    for mask in (short, whole):
        ZeroMassRecord().check(5, [0, 3], constants, mask)  # a kernel that is loaded lets the host wait, once
    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.cuda.set_sync_debug_mode("error")
        try:
            torch.cuda._sleep(200_000_000)  # type: ignore[no-untyped-call]  # the device is busy, so that no result can be here yet
            for mask in (short, short, whole):
                watch.check(5, [0, 3], constants, mask)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    with pytest.warns(ZeroMassWarning, match=r"layer 5, heads \[3\]: real tokens at positions \[3\]"):
        watch.check(5, [0, 3], constants, short)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watch.check(5, [0, 3], constants, whole)  # once


def test_a_record_waits_for_what_is_on_its_way(device: torch.device) -> None:
    record, constants = ZeroMassRecord(), CONSTANTS.to(device)
    ZeroMassRecord().check(0, [0, 1], constants, None)
    torch.cuda.synchronize()
    torch.cuda._sleep(200_000_000)  # type: ignore[no-untyped-call]  # no result can be here yet
    record.check(0, [0, 1], constants, None)
    assert copy.deepcopy(record).text == ""
    assert "positions [3]" in record.text


def test_a_graph_checks_nothing(device: torch.device) -> None:
    watch, constants, mask = ZeroMassWatch(), CONSTANTS.to(device), torch.ones(1, 4, device=device)
    result = torch.zeros(1, device=device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        watch.check(0, [0, 1], constants, mask)
        result += 1
    graph.replay()
    assert not watch.warned
