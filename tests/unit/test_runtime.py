"""Peak memory and threads of PyTorch, and the facts of a machine."""

import subprocess
from types import SimpleNamespace

import pytest
import torch

from papa_lightning.runtime import AllocationWatch, is_exporting, machine_facts, peak_bytes, threads_of_torch

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


@pytest.fixture
def gpu(monkeypatch):
    """A machine that seems to have a GPU."""
    properties = SimpleNamespace(major=9, minor=0, total_memory=150 * 10**9, uuid="1234")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    return torch.device("cuda", 0)


def test_driver_and_clock_of_a_gpu(gpu, monkeypatch):
    asked = []

    def run(words, **options):
        asked.extend(words)
        return SimpleNamespace(stdout="580.82.07, 1755 MHz, 1980 MHz\n")

    monkeypatch.setattr(subprocess, "run", run)
    facts = machine_facts(gpu)
    assert facts["device"] == "cuda (NVIDIA H200)"
    assert facts["gpu"] == {
        "capability": "9.0",
        "memory": "150 GB",
        "CUDA": "13.0",
        "driver": "580.82.07",
        "clock": "1755 MHz of 1980 MHz",
    }
    assert "--id=GPU-1234" in asked


@pytest.mark.parametrize("error", [FileNotFoundError(), subprocess.TimeoutExpired("nvidia-smi", 10), ValueError()])
def test_a_machine_that_tells_little_of_its_gpu(gpu, monkeypatch, error):
    def run(words, **options):
        raise error

    def clock(device):
        raise ModuleNotFoundError("pynvml")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(torch.cuda, "clock_rate", clock)
    assert {"capability", "memory", "CUDA"} <= set(machine_facts(gpu)["gpu"])
    torch.cuda.get_device_properties(gpu).clock_rate = 1980000
    assert machine_facts(gpu)["gpu"]["clock"] == "up to 1980 MHz"
    assert "gpu" not in machine_facts(CPU)


class Asks(torch.nn.Module):
    """Adds whether a graph is being exported."""

    def forward(self, x):
        return x + int(is_exporting())


def test_a_graph_that_torch_compile_makes_is_not_exported():
    """Versions of torch whose traces answer yes would take no kernel under torch.compile."""
    x = torch.zeros(1)
    assert Asks()(x) == 0
    assert torch.compile(Asks(), fullgraph=True, backend="eager")(x) == 0
    assert torch.export.export(Asks(), (x,)).module()(x) == 1
