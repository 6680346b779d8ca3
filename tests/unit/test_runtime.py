"""Peak memory and threads of PyTorch."""

import torch

from papa_lightning.runtime import AllocationWatch, peak_bytes, threads_of_torch

CPU = torch.device("cpu")


def test_peak_bytes_is_the_highest_moment_and_not_the_sum():
    def passing():
        first = torch.ones(1000)
        del first
        second = torch.ones(500)
        third = torch.ones(300)
        del second, third

    assert peak_bytes(passing, CPU) == 4000
    kept = []
    assert peak_bytes(lambda: kept.append(torch.ones(100)), CPU) == 400
    assert peak_bytes(lambda: None, CPU) == 0
    assert peak_bytes(lambda: None, torch.device("meta")) is None


def test_another_profiler_is_left_alone():
    with torch.autograd.profiler.profile() as outer:
        assert peak_bytes(lambda: torch.ones(100), CPU) is None
        torch.ones(3)
    assert "aten::ones" in {event.key for event in outer.key_averages()}
    assert AllocationWatch(CPU).stop() is None


def test_threads_are_set_and_set_back():
    before = torch.get_num_threads()
    with threads_of_torch(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with threads_of_torch(None):
        assert torch.get_num_threads() == before
