"""Times on a clock that the test turns: order, warm-up, medians, and waiting for the device."""

import gc
import itertools

import pytest
import torch

from papa_lightning.benchmark.timing import REST, Spread, interleaved_times, settle, synchronizer


class Clock:
    """A clock that advances on request only."""

    def __init__(self):
        self.now = 0.0
        self.pending = 0.0  # work of a device that nobody has waited for

    def __call__(self):
        return self.now

    def work(self, seconds):
        self.pending += seconds

    def wait(self):
        self.now += self.pending
        self.pending = 0.0


def test_one_run_of_each_in_turn():
    order = []
    runs = {name: lambda name=name: order.append(name) for name in "abc"}
    times = interleaved_times(runs, repeats=2, warmup=1)
    assert order == list("abcabcabc")
    assert [len(times[name]) for name in "abc"] == [2, 2, 2]


def test_the_warm_up_does_not_count_and_a_device_is_waited_for():
    clock, seconds = Clock(), itertools.count(1)
    times = interleaved_times({"a": lambda: clock.work(next(seconds))}, 3, 2, clock.wait, clock)
    assert times == {"a": [3.0, 4.0, 5.0]}


def test_what_was_left_to_do_before_is_nobodys_time():
    clock = Clock()
    clock.work(100.0)
    times = interleaved_times({"a": lambda: clock.work(1.0)}, 2, 0, clock.wait, clock)
    assert times == {"a": [1.0, 1.0]}


def test_several_runtimes_rest_and_run_once_before_each_time(monkeypatch):
    order, slept = [], []
    monkeypatch.setattr("papa_lightning.benchmark.timing.time.sleep", slept.append)
    clock = Clock()

    def run():
        order.append("run")
        clock.work(1.0)

    times = interleaved_times({"a": run}, 2, 1, clock.wait, clock, before=settle)
    assert times == {"a": [1.0, 1.0]}
    assert (len(order), slept) == (6, [REST] * 3)


@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_is_off_meanwhile(enabled):
    before, seen = gc.isenabled(), []
    try:
        (gc.enable if enabled else gc.disable)()
        interleaved_times({"a": lambda: seen.append(gc.isenabled())}, 1, 0)
        assert (seen, gc.isenabled()) == ([False], enabled)
    finally:
        (gc.enable if before else gc.disable)()


def test_it_is_on_again_after_an_error():
    with pytest.raises(ZeroDivisionError):
        interleaved_times({"a": lambda: 1 / 0}, 1, 0)
    assert gc.isenabled()


def test_median_and_quartiles():
    spread = Spread.of([7.0, 1.0, 100.0, 3.0, 5.0, 2.0, 6.0])
    assert (spread.median, spread.low, spread.high) == (5.0, 2.5, 6.5)


def test_the_cpu_needs_no_waiting_and_cuda_does(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    synchronizer(torch.device("cpu"))()
    assert waited == []
    synchronizer(torch.device("cuda", 0))()
    assert waited == [torch.device("cuda", 0)]
