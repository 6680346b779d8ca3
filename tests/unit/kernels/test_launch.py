"""Where kernels run."""

import shutil
import sys
import sysconfig
import warnings

import pytest
import torch

from papa_lightning.kernels import launch, usable


@pytest.fixture
def gpu(monkeypatch):
    """A machine with a GPU of a capability, as far as the questions go."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(launch, "_missing_tool", lambda: "")
    monkeypatch.setattr(launch, "_compiles", launch._found.__wrapped__)
    return monkeypatch


def on_gpu(dtype=torch.float32):
    """A tensor that says that it is on a GPU."""
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        return torch.empty(2, device="cuda", dtype=dtype)


def test_on_a_gpu(gpu):
    assert usable(on_gpu())
    assert usable(on_gpu(torch.bfloat16), on_gpu(torch.float32))
    assert not usable(on_gpu(torch.float64))
    assert not usable(torch.zeros(2))
    assert not usable(on_gpu(), torch.zeros(2))
    gpu.setattr(torch.compiler, "is_exporting", lambda: True)
    assert not usable(on_gpu())


def test_old_gpus_and_other_builds(gpu):
    gpu.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    assert not usable(on_gpu())
    gpu.setattr(torch.version, "hip", "6.0")
    assert usable(on_gpu())
    gpu.setattr(launch, "find_spec", lambda name: None)
    assert not usable(on_gpu())


def test_a_machine_without_a_compiler_is_warned_of(gpu):
    gpu.setattr(launch, "_missing_tool", lambda: "there is no C compiler")
    with pytest.warns(UserWarning, match="cannot build its kernels, because there is no C compiler"):
        assert not usable(on_gpu())


def test_what_triton_needs(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setenv("CC", "my-cc")
    assert "Python.h" in launch._missing_tool()
    (tmp_path / "Python.h").touch()
    assert launch._missing_tool() == ""
    monkeypatch.delenv("CC")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "gcc" in launch._missing_tool()
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}" if name == "clang" else None)
    assert launch._missing_tool() == ""
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert launch._missing_tool() == ""


def test_nothing_is_said_on_a_cpu():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not usable(torch.zeros(2))
